# Sourced by the scripts: a virtual environment with netagent in it, and the programs that a script needs.
# Installs what is missing where it may (root on Debian), and says what is missing where it may not.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${NETAGENT_VENV:-$top/.venv}

say() { printf '%s\n' "$*" >&2; }

# need_programs PROGRAM=PACKAGE...: every program is on the PATH afterwards; one with a slash is a file that is there.
need_programs() {
	local pair missing=()
	PATH=$PATH:/usr/sbin:/sbin
	for pair; do
		command -v "${pair%%=*}" >/dev/null || [ -e "${pair%%=*}" ] || missing+=("${pair##*=}")
	done
	[ ${#missing[@]} -eq 0 ] && return
	install_packages "${missing[@]}"
}

# want_programs PROGRAM=PACKAGE...: the same where packages can be installed; elsewhere, what needs them is skipped.
want_programs() {
	if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
		need_programs "$@"
	fi
}

install_packages() {
	if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
		say "missing Debian packages: $* (install them as root: apt-get install $*)"
		exit 69 # EX_UNAVAILABLE
	fi
	say "installing Debian packages: $*"
	{
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"
	} >/dev/null || { say "cannot install: $*"; exit 69; }
}

# need_netagent [EXTRAS]: $venv has netagent, from this tree, with the extras of setup.cfg ("test,check").
need_netagent() {
	local python stamp
	python=$(find_python)
	stamp="$venv/.netagent-$(printf '%s' "${1-}" | cat - "$top/setup.cfg" "$top/pyproject.toml" | cksum | tr ' ' -)"
	if [ ! -e "$stamp" ]; then
		"$python" -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
		say "setting up a virtual environment in $venv"
		# One that works is added to, so that the scripts, which need different extras, do not undo each other.
		"$venv/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$venv"
		"$venv/bin/pip" install --quiet --disable-pip-version-check --editable "$top${1:+[$1]}" 2> >(grep -v "is ignored: it is" >&2)
		touch "$stamp"
	fi
	PATH=$venv/bin:$PATH
}

# want_python_iptables EXTRAS: mode iptables commits small changes of legacy tables through python-iptables. It comes as
# source: where it cannot be built, what needs it is skipped.
want_python_iptables() {
	local headers
	"$venv/bin/python" -c 'import iptc' 2>/dev/null && return
	headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
	want_programs cc=gcc /usr/include/stdio.h=libc6-dev "$headers=python3-dev"
	"$venv/bin/pip" install --quiet --disable-pip-version-check --editable "$top[$1,iptables]" 2>/dev/null ||
		say "python-iptables could not be built: what needs it is skipped"
}

find_python() {
	local candidate
	for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
	install_packages python3 python3-venv
	command -v python3
}
