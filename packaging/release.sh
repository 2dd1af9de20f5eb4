#!/bin/sh
# Builds what is released into dist/: an archive of the binary with man pages, completions and licences; a Python wheel; checksums.
# usage: packaging/release.sh        (needs cargo, and `pip install maturin` for the wheel)
set -eu
cd "$(dirname "$0")/.."
version="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md has no heading \"## $version\"" >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || { echo "there are changes that are not committed" >&2; exit 1; }

cargo build --release --locked --package boute
name="boute-$version-$(rustc -vV | sed -n 's/^host: //p')"
rm -rf "dist/$name"
mkdir -p "dist/$name/completions"
cp target/release/boute README.md CHANGELOG.md LICENSE DATA-LICENSES.md "dist/$name/"
target/release/boute reference --man "dist/$name/man"
for shell in bash elvish fish powershell zsh; do
  target/release/boute completions "$shell" > "dist/$name/completions/boute.$shell"
done
tar -C dist -czf "dist/$name.tar.gz" "$name"
rm -rf "dist/$name"
maturin build --release --locked --out dist
(cd dist && sha256sum ./*.tar.gz ./*.whl > SHA256SUMS)
ls -l dist
