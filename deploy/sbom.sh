#!/bin/sh
# Writes what an image is made of, as CycloneDX 1.5 JSON: the Debian packages installed where it runs, those listed in
# BUILT_WITH ("name version" lines: what the server was compiled with, parts of which are inside it), the Python packages
# listed in PYTHON (the same), and the image's own program.
#
# Usage: sbom.sh NAME VERSION BUILT_WITH [PYTHON] >SBOM
set -eu
name=$1 version=$2 built_with=$3 python=${4:-/dev/null}
component() { # name, version, scope, purl without version, what follows the version in it
  printf ',\n    {"type": "library", "name": "%s", "version": "%s", "purl": "%s@%s%s", "scope": "%s"}' \
    "$1" "$2" "$4" "$(printf %s "$2" | sed 's/+/%2B/g; s/:/%3A/g')" "$5" "$3"
}
debian() { # name, version, scope
  component "$1" "$2" "$3" "pkg:deb/debian/$1" "?distro=bookworm"
}
printf '{\n  "bomFormat": "CycloneDX",\n  "specVersion": "1.5",\n  "version": 1,\n  "metadata": {"component": '
printf '{"type": "container", "name": "%s", "version": "%s"}},\n  "components": [\n' "$name" "$version"
printf '    {"type": "application", "name": "%s", "version": "%s", "scope": "required"}' "$name" "$version"
dpkg-query -W -f='${Package} ${Version}\n' | while read -r package its_version; do debian "$package" "$its_version" required; done
while read -r package its_version; do debian "$package" "$its_version" excluded; done <"$built_with"
while read -r package its_version; do component "$package" "$its_version" required "pkg:pypi/$package" ""; done <"$python"
printf '\n  ]\n}\n'
