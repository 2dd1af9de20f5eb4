"""SkyPilot's own parser on every task below FOLDER, and on the same with a mistake."""

import pathlib
import sys

import sky

count = 0
for path in sorted(pathlib.Path(sys.argv[1]).rglob("skypilot/*.yaml")):
    sky.Task.from_yaml(str(path))
    broken = path.with_name("broken.task")
    broken.write_text(path.read_text().replace("num_nodes:", "num_node:"))
    try:
        sky.Task.from_yaml(str(broken))
    except ValueError:
        count += 1
        continue
    sys.exit(f"{path}: `num_node` is taken")
assert count > 0
print(f"SkyPilot {sky.__version__}: takes {count} tasks, refuses them broken")
