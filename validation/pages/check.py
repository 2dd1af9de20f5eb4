#!/usr/bin/env python3
"""Opens the report, and the dashboard of a gateway, in headless Chromium and uses them as a person would: no console error, no
request to elsewhere, hover, click and keyboard work, nothing wider than a telephone, axe finds nothing, and the pictures are
those in goldens/ (in light, dark and at 390 pixels).

    pip install playwright axe-playwright-python pillow      # and Chromium from the system: apt-get install chromium
    validation/pages/check.py --boute target/release/boute [--report boute-demo/report.html] [--update]

`plan.json`, `promised.json` and `measured.json` are of `boute demo`, kept here so that the pictures do not change with the planner;
`--report` checks another page as well, without pictures. The dashboard is that of a gateway before the two emulated replicas of `fleet.json`: it must show
traffic, a replica that is killed and a plan that changes. Exit status 1 if anything is wrong. Takes about a minute."""
import argparse, json, pathlib, shutil, socket, subprocess, sys, tempfile, threading, time, urllib.request

from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import sync_playwright

HERE = pathlib.Path(__file__).parent
GOLDENS = HERE / "goldens"
# name, width, height, colour scheme
VIEWS = [("light", 1000, 800, "light"), ("dark", 1000, 800, "dark"), ("phone", 390, 800, "light")]
GOLDEN_WIDTH = 300
# Mean difference of a tile of the golden, of 255: other fonts give 5 to 15, a missing drawing 30 and more.
TILE, TOLERANCE = 60, 25

wrong = []


def check(right, what):
    if not right:
        wrong.append(what)
        print("WRONG", what, file=sys.stderr)


def watched(page, name):
    """Every console error, uncaught exception and request to elsewhere is wrong."""
    page.on("console", lambda m: check(m.type not in ("error", "warning"), f"{name}: console says {m.text}"))
    page.on("pageerror", lambda e: check(False, f"{name}: uncaught {e}"))
    local = ("file:", "data:", "http://127.0.0.1:")
    page.on("request", lambda r: check(r.url.startswith(local), f"{name}: asks {r.url}"))


def accessible(page, name):
    for found in Axe().run(page).response["violations"]:
        places = ", ".join(str(node["target"]) for node in found["nodes"][:3])
        check(False, f"{name}: axe: {found['id']}: {found['help']}: {places}")


def fits(page, name):
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    check(wide <= 0, f"{name}: {wide} pixels wider than the window")


def compare(page, name, update):
    with tempfile.TemporaryDirectory() as folder:
        shot = pathlib.Path(folder) / "page.png"
        page.screenshot(path=shot, full_page=True)
        seen = Image.open(shot).convert("RGB")
    seen = seen.resize((GOLDEN_WIDTH, round(seen.height * GOLDEN_WIDTH / seen.width)), Image.LANCZOS)
    golden = GOLDENS / f"{name}.png"
    if update:
        GOLDENS.mkdir(exist_ok=True)
        seen.quantize(64).save(golden, optimize=True)
        return
    wanted = Image.open(golden).convert("RGB")
    check(abs(wanted.height - seen.height) <= 0.08 * wanted.height, f"{name}: {seen.height} high, not {wanted.height}")
    difference = ImageChops.difference(wanted, seen.resize(wanted.size))
    for top in range(0, wanted.height, TILE):
        tile = difference.crop((0, top, GOLDEN_WIDTH, min(top + TILE, wanted.height)))
        mean = sum(ImageStat.Stat(tile).mean) / 3
        check(mean <= TOLERANCE, f"{name}: at {top} of {wanted.height} the picture is another one ({mean:.0f} of 255)")


def report(browser, path, name, update=None):
    """`update` None: no pictures."""
    for view, width, height, scheme in VIEWS:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        label = f"{name}-{view}"
        watched(page, label)
        page.goto(path.resolve().as_uri())
        data = json.loads(page.locator("#boute-data").text_content())
        front, note = data["plan"]["front"], page.locator("#point")
        chosen = next(point for point in front if point["chosen"])
        check(chosen["fleet"] in note.inner_text(), f"{label}: the plan itself is not shown first")
        cost = f"{data['plan']['predicted']['cost_usd_per_hour']:.2f}"
        check(cost in page.locator("h1").inner_text(), f"{label}: the heading is not the plan's cost")
        if update is not None:
            compare(page, label, update)
        accessible(page, label)
        fits(page, label)
        points = page.locator("[data-point]")
        check(points.count() == len(front), f"{label}: {points.count()} points for {len(front)} plans")
        points.first.hover(force=True)
        check(front[0]["fleet"] in note.inner_text(), f"{label}: hover shows nothing")
        page.mouse.move(1, 1)
        check(chosen["fleet"] in note.inner_text(), f"{label}: after hover the plan does not come back")
        points.last.click(force=True)
        page.mouse.move(1, 1)
        check(front[-1]["fleet"] in note.inner_text(), f"{label}: click selects nothing")
        page.keyboard.press("ArrowLeft")
        check(front[-2]["fleet"] in note.inner_text(), f"{label}: the arrow key goes nowhere")
        page.keyboard.press("Home")
        check(front[0]["fleet"] in note.inner_text(), f"{label}: Home goes nowhere")
        pressed = page.locator("[data-point][aria-pressed=true]")
        check(pressed.count() == 1 and pressed.get_attribute("tabindex") == "0", f"{label}: not one point is pressed")
        page.close()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(port):
    """A short request; what came of it is the dashboard's to show."""
    body = {"model": "auto", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
    url, head = f"http://127.0.0.1:{port}/v1/chat/completions", {"content-type": "application/json"}
    try:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head), timeout=20).read()
    except OSError:
        pass


def dashboard(browser, boute, folder):
    plan = pathlib.Path(folder) / "fleet.json"
    shutil.copy(HERE / "fleet.json", plan)
    engines = [free_port() for _ in range(2)]
    port, admin = free_port(), free_port()
    mock = [boute, "-q", "mock", "--model", "llama-3.1-8b", "--gpu", "L40S", "--time-scale", "10"]
    processes = [subprocess.Popen([*mock, "--listen", f"127.0.0.1:{engine}"]) for engine in engines]
    replicas = [f"--replica=llama-3.1-8b=http://127.0.0.1:{engine}" for engine in engines]
    addresses = ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    processes.append(subprocess.Popen([boute, "-q", "serve", plan, *replicas, *addresses]))
    try:
        watch_dashboard(browser, port, admin, plan, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def watch_dashboard(browser, port, admin, plan, processes):
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{admin}/health").read()
            break
        except OSError:
            time.sleep(0.1)
    pages = []
    for view, width, height, scheme in VIEWS:
        # Waiting evaluates text, which the page's own policy forbids.
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True)
        watched(page, f"dashboard-{view}")
        page.goto(f"http://127.0.0.1:{admin}/dashboard")
        pages.append((f"dashboard-{view}", page))
    askers = [threading.Thread(target=lambda: [ask(port) for _ in range(4)]) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    for name, page in pages:
        page.wait_for_function("document.getElementById('models').innerText.includes('100%')", timeout=10_000)
        page.wait_for_function("document.getElementById('promises').innerText.includes('✓ kept')", timeout=10_000)
        for wanted in ["live", "2 of 2", "$5.40/h", "e2e_p95"]:
            check(wanted in page.locator("main").inner_text(), f"{name}: `{wanted}` is not shown")
        accessible(page, name)
        fits(page, name)
    # A killed replica and another plan are seen at the next look or the one after.
    processes[0].kill()
    killed = time.monotonic()
    for name, page in pages:
        page.wait_for_function("/down|out/.test(document.getElementById('replicas').innerText)", timeout=10_000)
    print(f"a killed replica is seen after {time.monotonic() - killed:.1f} s (a health check a second, and a look)")
    swapped = json.loads(plan.read_text()) | {"strategy": "another"}
    plan.write_text(json.dumps(swapped))
    changed = time.monotonic()
    for name, page in pages:
        page.wait_for_function("/plan changes\\s+1/.test(document.getElementById('tiles').innerText)", timeout=10_000)
    print(f"another plan is seen after {time.monotonic() - changed:.1f} s")
    for name, page in pages:
        page.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boute", default="target/release/boute")
    parser.add_argument("--report", type=pathlib.Path)
    parser.add_argument("--update", action="store_true", help="write the goldens anew")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        # As root in a container Chromium has no sandbox of its own; the pages are ours.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        made = pathlib.Path(folder) / "report.html"
        outcomes = ["--simulated", HERE / "promised.json", "--measured", HERE / "measured.json"]
        subprocess.run([args.boute, "-q", "report", HERE / "plan.json", *outcomes, "-o", made], check=True)
        report(browser, made, "report", args.update)
        if args.report:
            report(browser, args.report, args.report.name)
        dashboard(browser, args.boute, folder)
        browser.close()
    print(f"{len(wrong)} wrong, {time.monotonic() - started:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
