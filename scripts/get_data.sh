#!/bin/sh
# Make FashionMNIST available, without root where possible. Always succeeds: when nothing works here, the loader still
# downloads the files, and explains what to do where it cannot.
set -u
cd "$(dirname "$0")/.." || exit 0

package=dataset-fashion-mnist
system=/usr/share/datasets/fashion-mnist
local=data/fashion-mnist
files="train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte"

complete() {
    for file in $files; do
        [ -f "$1/$file.gz" ] || [ -f "$1/$file" ] || return 1
    done
    echo "FashionMNIST is in $1"
}

found() {
    if [ -n "${FEDSPARSIFY_DATA:-}" ]; then
        for folder in fashion-mnist . FashionMNIST/raw; do
            complete "$FEDSPARSIFY_DATA/$folder" && return
        done
    fi
    complete "$local" || complete "$system"
}

install_package() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "Installing the Debian package $package"
    apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null 2>&1; }
    apt_install || { apt-get update -qq >/dev/null 2>&1 && apt_install; }
}

unpack_package() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    echo "Unpacking the Debian package $package into $local"
    mkdir -p data && work=$(mktemp -d data/unpack.XXXXXX) || return 1
    # The folder is renamed when it is whole: an interrupted copy is never taken for the data.
    (cd "$work" && apt-get download -qq "$package" && dpkg-deb -x "$package"_*.deb .) >/dev/null 2>&1 &&
        mv -T "$work/usr/share/datasets/fashion-mnist" "$local"
    status=$?
    rm -rf "$work"
    return $status
}

found && exit 0
install_package && found && exit 0
unpack_package && found && exit 0
echo "FashionMNIST is not on this machine; it will be downloaded when it is needed"
