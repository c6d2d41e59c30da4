#!/bin/bash
# Builds the guest kernel, or takes it from the cache. See README.md in this folder.

set -euo pipefail

readonly usage="usage: guest-kernel/build.sh [--output DIR] [--tarball FILE --sha256 HASH] [--print-key]"

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly here
series=$(<"$here/VERSION")
readonly series
readonly fragment=$here/hull.config
readonly debian_tarball=/usr/src/linux-source-$series.tar.xz
# Two thirds of the source are for other processors and for hardware that no guest has. Leaving those files out (not their
# Kconfig and Makefile) spares the disk; were one needed after all, the build would fail for want of it.
readonly unused=(
  '*/Documentation/*/*' '*/arch/[!x]*/*.[chS]' '*/arch/[!x]*/boot/*' '*/tools/testing/*' '*/tools/perf/*' '*/samples/*.[ch]'
  '*/sound/*.[ch]'
  '*/drivers/'{accel,comedi,gpu,hid,iio,infiniband,input,media,mfd,mtd,pinctrl,scsi,soc,staging,usb,video}'/*.[ch]'
  '*/drivers/net/'{ethernet,wireless}'/*.[ch]'
)
readonly products=(vmlinux vmlinux.version vmlinux.map)

output=$(dirname "$here")/target/guest
tarball="" sha256="" print_key=no
source="" key="" work=""

say() {
  echo "guest kernel: $*" >&2
}

fail() {
  say "$*"
  exit 1
}

parse_arguments() {
  while (($# > 0)); do
    case $1 in
      --print-key) print_key=yes && shift && continue ;;
      --help) echo "$usage" && exit 0 ;;
      --output | --tarball | --sha256) (($# > 1)) || fail "$1 needs a value. $usage" ;;
      *) fail "unknown argument '$1'. $usage" ;;
    esac
    case $1 in
      --output) output=$2 ;;
      --tarball) tarball=$2 ;;
      --sha256) sha256=$2 ;;
    esac
    shift 2
  done
  [[ -n $tarball || -z $sha256 ]] || fail "--sha256 belongs to --tarball. $usage"
}

require() {
  local name package
  while read -r name package; do
    [[ -e $name ]] || command -v "$name" >/dev/null ||
      fail "$name is missing: apt-get install $package ($here/packages lists all that is needed)"
  done <<-END
	gcc gcc
	make make
	flex flex
	bison bison
	bc bc
	/usr/include/gelf.h libelf-dev
	xz xz-utils
	patch patch
	flock util-linux
	END
}

# Sets tarball, and source: the words that name it exactly, in the key and in the record beside the kernel.
find_source() {
  local version actual
  if [[ -n $tarball ]]; then
    [[ $sha256 =~ ^[0-9a-f]{64}$ ]] || fail "--tarball needs --sha256 with its 64 hexadecimal digits"
    [[ -f $tarball ]] || fail "$tarball: no such file"
    actual=$(sha256sum <"$tarball")
    [[ ${actual%% *} == "$sha256" ]] || fail "$tarball has the SHA-256 ${actual%% *}, not $sha256: not used"
    source="tarball sha256:$sha256"
  else
    # shellcheck disable=SC2016 # dpkg's variables
    version=$(dpkg-query --show --showformat='${Version}' "linux-source-$series" 2>/dev/null) || version=""
    [[ -n $version && -f $debian_tarball ]] ||
      fail "no source: apt-get install linux-source-$series, or give --tarball FILE --sha256 HASH"
    tarball=$debian_tarball
    source="Debian linux-source-$series $version"
  fi
}

patches() {
  find "$here" -path "$here/patches/*.patch" | LC_ALL=C sort
}

# Everything that the result depends on.
compute_key() {
  local patch
  key=$({
    echo "$source"
    toolchain
    cat "$here/VERSION" "$fragment" "$here/build.sh"
    while read -r patch; do
      cat "$patch"
    done < <(patches)
  } | sha256sum)
  key=${key%% *}
}

toolchain() {
  gcc --version | head -n 1
  ld --version | head -n 1
}

# The kernel's build system, with nothing from the caller's environment (least of all another make's flags) and with
# what it would record of this machine and moment fixed. Needs built_at.
kernel_make() {
  env --ignore-environment PATH="$PATH" LC_ALL=C TZ=UTC \
    KBUILD_BUILD_TIMESTAMP="$built_at" KBUILD_BUILD_USER=hull KBUILD_BUILD_HOST=hull KBUILD_BUILD_VERSION=1 \
    make --directory="$work/source" ARCH=x86_64 "$@"
}

unpack() {
  local version patch
  say "unpacking $tarball"
  mkdir "$work/source"
  tar --extract --file="$tarball" --directory="$work/source" --strip-components=1 "${unused[@]/#/--exclude=}"
  # As old as the source, and the same in every build of it.
  built_at=$(date --utc --date="@$(stat --format=%Y "$work/source/Makefile")" '+%Y-%m-%d %H:%M:%S UTC')
  version=$(kernel_make --silent kernelversion)
  [[ $version == "$series".* ]] || fail "$tarball holds Linux $version; Hull's guest kernel is of the series $series"
  while read -r patch; do
    say "applying ${patch##*/}"
    patch --directory="$work/source" --strip=1 --forward --silent <"$patch" || fail "$patch does not apply"
  done < <(patches)
}

configure() {
  say "configuring"
  kernel_make --silent KCONFIG_ALLCONFIG="$fragment" allnoconfig >"$work/configure.log" 2>&1 ||
    fail "cannot configure: $(<"$work/configure.log")"
  check_configuration "$work/source/.config"
}

# Kconfig drops, without a word, what does not exist or lacks a dependency. So every line has to be found again.
check_configuration() {
  local line option actual lost=0
  while read -r line; do
    case $line in
      CONFIG_*=*) option=${line%%=*} ;;
      "# CONFIG_"*" is not set") option=${line#\# } option=${option% is not set} line="" ;;
      *) continue ;;
    esac
    actual=$(grep --max-count=1 "^$option=" "$1") || true
    if [[ $actual != "$line" ]]; then
      say "hull.config says '${line:-$option off}', the result is '${actual:-$option off}'"
      lost=$((lost + 1))
    fi
  done <"$fragment"
  ((lost == 0)) || fail "$lost lines of hull.config did not survive: a dependency is missing, or the name is wrong"
}

compile() {
  local start=$SECONDS
  say "compiling with $(nproc) jobs (about 10 minutes of processor time)"
  kernel_make --jobs="$(nproc)" vmlinux 2>&1 | tee "$work/compile.log" | count_steps || {
    tail -n 30 "$work/compile.log" >&2
    fail "the build failed; the end of its output is above"
  }
  say "compiled in $((SECONDS - start)) s"
}

# Shows that the build goes on, from its own lines: "  CC      mm/slub.o".
count_steps() {
  local steps=0
  while read -r _; do
    steps=$((steps + 1))
    ((steps % 300 != 0)) || say "  $steps steps"
  done
}

# collect DIRECTORY: the kernel without its symbols, what it is, and its symbols for decoding a panic.
collect() {
  strip --strip-all -o "$1/vmlinux" "$work/source/vmlinux"
  cp "$work/source/System.map" "$1/vmlinux.map"
  {
    echo "release: $(kernel_make --silent kernelrelease)"
    echo "source: $source"
    echo "compiler: $(gcc --version | head -n 1)"
    echo "key: $key"
    echo "sha256: $(sha256sum <"$1/vmlinux" | cut -d ' ' -f 1)"
  } >"$1/vmlinux.version"
}

build_into() {
  work=$(mktemp --directory "${TMPDIR:-/tmp}/hull-guest-kernel.XXXXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  say "building from $source"
  unpack
  configure
  compile
  local complete
  complete=$(mktemp --directory "$1.XXXXXXXX")
  collect "$complete"
  chmod 0755 "$complete"
  # One step: whoever looks sees the whole kernel or none.
  mv --no-target-directory "$complete" "$1"
}

install_from() {
  local product
  mkdir -p "$output"
  for product in "${products[@]}"; do
    if ! cmp --silent "$1/$product" "$output/$product"; then
      cp "$1/$product" "$output/.$product.$$"
      mv "$output/.$product.$$" "$output/$product"
    fi
  done
  say "$(sed -n 's/^release: //p' "$1/vmlinux.version") in $output/vmlinux"
}

main() {
  parse_arguments "$@"
  require
  find_source
  compute_key
  if [[ $print_key == yes ]]; then
    echo "$key"
    exit
  fi
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/hull/guest-kernel lock
  mkdir -p "$cache"
  exec {lock}>"$cache/lock"
  flock --nonblock "$lock" || {
    say "waiting for another build"
    flock "$lock"
  }
  [[ -e $cache/$key ]] || build_into "$cache/$key"
  install_from "$cache/$key"
}

main "$@"
