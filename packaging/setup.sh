#!/bin/sh
# Sets up everything that `make demo` and `make test` need, and says what it does. A second run finds nothing to do.
#   setup.sh          Debian packages, then a virtual environment with vmbatch in it, linked as build/venv
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P)

say() { printf 'setup: %s\n' "$*"; }

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"
	elif command -v sudo > /dev/null; then sudo "$@"
	else
		say "this must be run as root, since sudo is missing: $*" >&2
		exit 1
	fi
}

packages() {
	wanted=$(sed 's/#.*//' packaging/debian-packages.txt | tr '\n' ' ')
	missing=
	for package in $wanted; do
		case $(dpkg-query -W -f '${Status}' "$package" 2> /dev/null || true) in
		*' installed') ;;
		*) missing="$missing $package" ;;
		esac
	done
	[ -n "$missing" ] || return 0
	say "installing Debian packages:$missing"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update > build/setup.log 2>&1 || { tail build/setup.log; exit 1; }
	# shellcheck disable=SC2086  # a list of words
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing \
		>> build/setup.log 2>&1 || { tail build/setup.log; exit 1; }
}

# Job users run vmbatch too: where they cannot reach this folder, the environment goes to /var/tmp.
venv_place() {
	place=$here
	while [ "$place" != / ]; do
		case $(stat -c %A "$place") in
		*x | *t) ;;
		*) echo "/var/tmp/vmbatch-venv-$(printf %s "$here" | cksum | cut -d' ' -f1)"; return ;;
		esac
		place=$(dirname "$place")
	done
	echo "$here/build/venv-files"
}

environment() {
	venv=$(venv_place)
	sum=$(find setup.cfg setup.py pyproject.toml README.md vmbatch hooks domain-templates packaging -type f \
		! -name '*.pyc' -exec cksum {} + | sort | cksum)
	[ "$(cat "$venv/.sources" 2> /dev/null || true)" != "$sum" ] || { ln -sfn "$venv" build/venv; return 0; }
	if [ ! -x "$venv/bin/pip" ]; then
		say "making a virtual environment in $venv"
		/usr/bin/python3 -m venv "$venv"
	fi
	say "installing vmbatch and its test tools into it"
	"$venv/bin/pip" install -q --disable-pip-version-check '.[test]' > build/setup.log 2>&1 ||
		{ cat build/setup.log; exit 1; }
	"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall . >> build/setup.log 2>&1 ||
		{ cat build/setup.log; exit 1; }
	rm -rf build/lib build/bdist.* ./*.egg-info
	printf %s "$sum" > "$venv/.sources"
	ln -sfn "$venv" build/venv
}

if [ ! -e /usr/bin/apt-get ]; then
	say "this is not Debian: please install by hand what packaging/debian-packages.txt names, then make a virtual" \
		"environment in build/venv and run its pip install '.[test]'" >&2
	exit 1
fi
mkdir -p build
packages
environment
