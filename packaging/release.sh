#!/bin/sh
# Builds what is released into dist/: an archive of the binary with man pages, completions and licences, on Linux also one with a
# static binary (musl) where that target is installed; a Python wheel; checksums.
# usage: packaging/release.sh        (needs cargo, and `pip install maturin` for the wheel;
#                                     for the static binary `rustup target add x86_64-unknown-linux-musl` and musl-gcc)
set -eu
cd "$(dirname "$0")/.."
version="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md has no heading \"## $version\"" >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || { echo "there are changes that are not committed" >&2; exit 1; }
command -v maturin > /dev/null || { echo "maturin is not here: pip install maturin" >&2; exit 1; }

# Line tables for backtraces would make the archives three times as large.
export CARGO_PROFILE_RELEASE_DEBUG=false
host="$(rustc -vV | sed -n 's/^host: //p')"
static="$(uname -m)-unknown-linux-musl"

# archive TARGET BINARY
archive() {
  name="boute-$version-$1"
  rm -rf "dist/$name"
  mkdir -p "dist/$name/completions"
  cp "$2" README.md CHANGELOG.md LICENSE DATA-LICENSES.md "dist/$name/"
  "$2" reference --man "dist/$name/man"
  for shell in bash elvish fish powershell zsh; do
    "$2" completions "$shell" > "dist/$name/completions/boute.$shell"
  done
  tar -C dist -czf "dist/$name.tar.gz" "$name"
  rm -rf "dist/$name"
}

cargo build --release --locked --package boute
archive "$host" target/release/boute
if [ -d "$(rustc --print sysroot)/lib/rustlib/$static" ] && command -v musl-gcc > /dev/null; then
  cargo build --release --locked --package boute --target "$static"
  archive "$static" "target/$static/release/boute"
else
  echo "no static binary: $static or musl-gcc is not installed" >&2
fi
maturin build --release --locked --out dist
(cd dist && sha256sum ./*.tar.gz ./*.whl > SHA256SUMS)
ls -l dist
