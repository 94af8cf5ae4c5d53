#!/bin/sh
# Writes what an image is made of, as CycloneDX 1.5 JSON: the Debian packages installed where it runs, those listed in
# BUILT_WITH ("name version" lines: what the server was compiled with, parts of which are inside it), and the server.
#
# Usage: sbom.sh NAME VERSION BUILT_WITH >SBOM
set -eu
name=$1 version=$2 built_with=$3
component() { # name, version, scope
  printf ',\n    {"type": "library", "name": "%s", "version": "%s", "purl": "pkg:deb/debian/%s@%s?distro=bookworm", "scope": "%s"}' \
    "$1" "$2" "$1" "$(printf %s "$2" | sed 's/+/%2B/g; s/:/%3A/g')" "$3"
}
printf '{\n  "bomFormat": "CycloneDX",\n  "specVersion": "1.5",\n  "version": 1,\n  "metadata": {"component": '
printf '{"type": "container", "name": "%s", "version": "%s"}},\n  "components": [\n' "$name" "$version"
printf '    {"type": "application", "name": "%s", "version": "%s", "scope": "required"}' "$name" "$version"
dpkg-query -W -f='${Package} ${Version}\n' | while read -r package its_version; do component "$package" "$its_version" required; done
while read -r package its_version; do component "$package" "$its_version" excluded; done <"$built_with"
printf '\n  ]\n}\n'
