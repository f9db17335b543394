#!/bin/sh
# Make this node trust the CA of a mitm-cache, and undo it. See --help.
set -eu

name=mitm-cache.crt
next=mitm-cache-next.crt
root=${DESTDIR:-}

usage() {
    cat <<'EOF'
usage: install-ca.sh CA.crt      trust this CA in the system's store (replaces one installed earlier); a file of two,
                                 as `mitm-cache ca export` writes it while the CA is changed, is trusted with both
       install-ca.sh --undo      stop trusting it
       install-ca.sh --help

Needs root, and works on Debian, RHEL, Alpine, SUSE and Arch families. Restarts nothing: dockerd and containerd
read the store once, so restart them afterwards. With DESTDIR set, the file is only put under (or removed from)
that directory, for building images: run the update command that is printed inside the image.
EOF
}

fail() {
    echo "install-ca.sh: $*" >&2
    exit 1
}

# Sets `anchors`, where this family keeps local CAs, and `update`, which makes its store from them. The tool decides
# the family. Without --fresh, links under /etc/ssl/certs named by the hash of an older CA's subject would stay.
find_store() {
    if has update-ca-certificates && [ -d "$root/etc/pki/trust/anchors" ]; then                 # SUSE
        anchors=/etc/pki/trust/anchors update='update-ca-certificates --fresh'
    elif has update-ca-certificates; then                                                       # Debian, Alpine
        anchors=/usr/local/share/ca-certificates update='update-ca-certificates --fresh'
    elif has update-ca-trust && [ -d "$root/etc/ca-certificates/trust-source/anchors" ]; then   # Arch
        anchors=/etc/ca-certificates/trust-source/anchors update=update-ca-trust
    elif has update-ca-trust; then                                                              # RHEL, Fedora
        anchors=/etc/pki/ca-trust/source/anchors update=update-ca-trust
    else
        fail "found neither update-ca-certificates nor update-ca-trust: install the package ca-certificates"
    fi
}

has() {
    for directory in /usr/sbin /usr/bin /sbin /bin /usr/local/sbin /usr/local/bin; do
        [ ! -x "$root$directory/$1" ] || return 0
    done
    return 1
}

check_certificate() {
    [ -f "$1" ] || fail "$1: no such file"
    if grep -q 'PRIVATE KEY' "$1"; then
        fail "$1 holds a private key, which must stay on the cache host; give ca.crt"
    fi
    case $(grep -c '^-----BEGIN CERTIFICATE-----' "$1") in
        1 | 2) ;;
        *) fail "$1 is not one certificate in PEM form, or two" ;;
    esac
    # A node may have no openssl; the store's own tool then has the last word.
    if command -v openssl >/dev/null 2>&1; then
        first "$1" | openssl x509 -noout 2>/dev/null || fail "$1 is not a certificate"
        [ -z "$(second "$1")" ] || second "$1" | openssl x509 -noout 2>/dev/null || fail "$1 is not a certificate"
    fi
}

# The store's directory of hashes wants a file for each certificate.
first() {
    sed '/^-----END CERTIFICATE-----/q' "$1"
}

second() {
    sed '1,/^-----END CERTIFICATE-----/d' "$1" | sed -n '/^-----BEGIN CERTIFICATE-----/,/^-----END CERTIFICATE-----/p'
}

update_store() {
    if [ -n "$root" ]; then
        echo "In the image still to be run: $update"
    else
        # shellcheck disable=SC2086  # a command with its options
        PATH=$PATH:/usr/sbin:/sbin $update >/dev/null || fail "$update failed"
    fi
}

tell_restart() {
    echo "Restart dockerd and containerd if they run here (systemctl restart docker containerd): they read the store"
    echo "only when they start, and Docker Hub works through the cache only with the CA in it. Nothing was restarted."
}

# put first|second FILE TARGET
put() {
    # Written beside and renamed: the store never sees half a file. Its name does not end in .crt, so it is no CA.
    "$1" "$2" >"$3.new"
    chmod 644 "$3.new"
    if cmp -s "$3.new" "$3"; then
        rm -f "$3.new"
        echo "$3 is this CA already"
    else
        mv -f "$3.new" "$3"
        echo "Installed $3"
    fi
    if command -v openssl >/dev/null 2>&1; then
        openssl x509 -in "$3" -noout -fingerprint -sha256
    fi
}

install_ca() {
    check_certificate "$1"
    mkdir -p "$root$anchors"
    put first "$1" "$root$anchors/$name"
    if [ -n "$(second "$1")" ]; then
        put second "$1" "$root$anchors/$next"
    else
        rm -f "$root$anchors/$next"
    fi
    update_store
    tell_restart
}

undo() {
    target=$root$anchors/$name
    if [ -e "$target" ]; then
        rm -f "$target"
        echo "Removed $target"
    else
        echo "$target is not there"
    fi
    rm -f "$root$anchors/$next"
    update_store
    tell_restart
}

case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
    --undo) [ $# -eq 1 ] || { usage >&2; exit 2; } ;;
    '' | -*)
        usage >&2
        exit 2
        ;;
    *) [ $# -eq 1 ] || { usage >&2; exit 2; } ;;
esac

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo"
find_store
if [ "$1" = --undo ]; then
    undo
else
    install_ca "$1"
fi
