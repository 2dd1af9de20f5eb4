"""kubernetes-validate --strict on every core object below FOLDER, and on the same with a mistake."""

import pathlib
import sys

import kubernetes_validate
import yaml

VERSION = "1.37"
count = 0
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.yaml")):
    for document in yaml.safe_load_all(path.read_text()):
        # Custom resources are checked by `cargo test`, against their own schemas.
        if not isinstance(document, dict) or document.get("apiVersion") not in (
            "v1",
            "apps/v1",
            "policy/v1",
            "networking.k8s.io/v1",
        ):
            continue
        kubernetes_validate.validate(document, VERSION, strict=True)
        part = next(key for key in ("spec", "data", "binaryData", "metadata") if key in document)
        document[part + "s"] = document.pop(part)
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError:
            count += 1
            continue
        sys.exit(f"{path}: a {document['kind']} with `{part}s` is taken")
assert count > 0
print(f"kubernetes-validate {VERSION}: takes {count} objects, refuses them broken")
