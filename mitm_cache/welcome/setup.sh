#!/bin/sh
# Lead this node's image pulls to a mitm-cache, and undo it. See --help. Served by the cache, which fills in its facts.
set -eu
umask 022
LC_ALL=C
export LC_ALL

version='@VERSION@'
fingerprint='@FINGERPRINT@'
certificate='@CERTIFICATE@'
names='@NAMES@'
mirrored='@MIRRORED@'
tls_host='@TLS_HOST@'
tls_port='@TLS_PORT@'
mirror_host='@MIRROR_HOST@'
mirror_port='@MIRROR_PORT@'

root=${DESTDIR:-}
state=/var/lib/mitm-cache-node
begin='# BEGIN mitm-cache node'
end='# END mitm-cache node'
unended=', after a line that has no end'
work='' update='' way='' caches='' given='' undo=''

usage() {
    cat <<'EOF'
usage: setup.sh [hosts]          trust the cache's CA in the system's store, and lead the registries' names to the cache
                                 in /etc/hosts: every client, every registry, private images too
       setup.sh mirror           use the cache as a mirror, by plain HTTP and without its CA: containerd and podman for
                                 every registry, dockerd for Docker Hub
       setup.sh --undo           put back what was there before either of them
       setup.sh --help

  --cache ADDRESS     another address of the cache; more than one for more than one cache
  --fingerprint AA:BB:...
                      go on only if the CA has this SHA-256

Needs root. May be run again, with other addresses too. Restarts nothing, and says what to restart. A file that somebody
else has written stays as it is, and what to add to it is printed. With DESTDIR set, all of it happens under that
directory, for building images.
EOF
}

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

misused() {
    echo "setup.sh: $*" >&2
    usage >&2
    exit 2
}

has() {
    for directory in /usr/sbin /usr/bin /sbin /bin /usr/local/sbin /usr/local/bin; do
        [ ! -x "$root$directory/$1" ] || return 0
    done
    return 1
}

# --- files -----------------------------------------------------------------------------------------------------------
# Under $state is what the undo needs: the directories that were made, in that order, and a copy of each file that is
# ours alone, by which it is known again. All is noted before it is done, so that a run that was cut short can be undone
# or done again; a copy is called .new until then.

make_directory() {
    [ ! -d "$root$1" ] || return 0
    make_directory "$(dirname "$1")"
    echo "$1" >>"$root$state/made"
    mkdir "$root$1"
}

open_state() {
    mkdir -p "$root$state/files"
    # The undo must work when the cache is no more. A script that comes by a pipe is in no file.
    if [ -f "$0" ] && grep -q '^begin=.# BEGIN mitm-cache node.$' "$0" && ! cmp -s "$0" "$root$state/setup.sh"; then
        cp "$0" "$work/setup.sh"
        put "$state/setup.sh" "$work/setup.sh"
    fi
}

# put TARGET FILE: written beside it and renamed, so that nobody reads half of it.
put() {
    rm -f "$root$1.mitm-cache-new"
    cp "$2" "$root$1.mitm-cache-new"
    chmod 644 "$root$1.mitm-cache-new"
    sync "$root$1.mitm-cache-new" 2>/dev/null || :
    mv -f "$root$1.mitm-cache-new" "$root$1"
}

is_ours() {
    cmp -s "$root$1" "$2" || cmp -s "$root$1" "$2.new"
}

# own TARGET FILE: a file of ours with this content. One that is not ours is left, and `foreign` set unless it says the
# same already. (A return value would be asked for by `if` or `||`, within which `set -e` does not hold.)
own() {
    foreign=''
    copy=$root$state/files/$(echo "$1" | tr / %)
    if [ -e "$root$1" ] && ! is_ours "$1" "$copy"; then
        cmp -s "$root$1" "$2" || foreign=1
        [ -n "$foreign" ] || echo "$root$1 is so already, and stays after an undo"
    elif cmp -s "$root$1" "$2" && cmp -s "$copy" "$2"; then
        echo "$root$1 is so already"
    else
        cp "$2" "$copy.new"
        make_directory "$(dirname "$1")"
        put "$1" "$2"
        mv -f "$copy.new" "$copy"
        echo "Wrote $root$1"
    fi
}

# replace TARGET FILE: new content for a file that is not ours, under its owner and mode.
replace() {
    target=$(readlink -f "$1")
    rm -f "$target.mitm-cache-new"
    cp -p "$target" "$target.mitm-cache-new"
    cat "$2" >"$target.mitm-cache-new"
    sync "$target.mitm-cache-new" 2>/dev/null || :
    if ! mv -f "$target.mitm-cache-new" "$target" 2>/dev/null; then
        # In a container it is a mount, over which nothing can be renamed.
        rm -f "$target.mitm-cache-new"
        cat "$2" >"$target"
    fi
    if [ -z "$root" ] && has restorecon; then restorecon "$target" 2>/dev/null || :; fi
    cmp -s "$target" "$2" || fail "$target could not be written"
}

# --- the CA ----------------------------------------------------------------------------------------------------------

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

update_store() {
    if [ -n "$root" ]; then
        echo "In the image still to be run: $update"
    else
        # shellcheck disable=SC2086  # a command with its options
        PATH=$PATH:/usr/sbin:/sbin $update >/dev/null </dev/null || fail "$update failed"
    fi
}

# While the cache changes its CA there are two; the store's directory of hashes wants a file for each.
first_certificate() {
    echo "$certificate" | sed '/^-----END CERTIFICATE-----$/q'
}

measure() {
    if command -v base64 >/dev/null 2>&1 && command -v sha256sum >/dev/null 2>&1; then
        first_certificate | sed '/^-----/d' | base64 -d | sha256sum | cut -c 1-64
    elif command -v openssl >/dev/null 2>&1; then
        first_certificate | openssl x509 -noout -fingerprint -sha256 | sed 's/.*=//'
    else
        fail "needs base64 and sha256sum, or openssl, to look at the CA's fingerprint"
    fi
}

plain() {
    echo "$1" | tr -d ': ' | tr a-f A-F
}

check_fingerprint() {
    found=$(measure)
    [ "$(plain "$found")" = "$(plain "$fingerprint")" ] ||
        fail "this script is damaged: its certificate has not the fingerprint it tells"
    if [ -n "$given" ] && [ "$(plain "$given")" != "$(plain "$fingerprint")" ]; then
        fail "the CA in this script is $fingerprint and not $given: nothing was changed"
    fi
}

trust() {
    find_store
    first_certificate >"$work/ca.crt"
    own "$anchors/mitm-cache.crt" "$work/ca.crt"
    [ -z "$foreign" ] ||
        fail "$root$anchors/mitm-cache.crt is another CA; take it out first (install-ca.sh --undo)"
    second=$anchors/mitm-cache-next.crt
    copy=$root$state/files/$(echo "$second" | tr / %)
    echo "$certificate" | sed '1,/^-----END CERTIFICATE-----$/d' >"$work/next.crt"
    if [ -s "$work/next.crt" ]; then
        own "$second" "$work/next.crt"
        [ -z "$foreign" ] || fail "$root$second is another CA; take it out first (install-ca.sh --undo)"
    elif [ -f "$copy" ] && is_ours "$second" "$copy"; then
        rm -f "$root$second" "$copy"
        echo "Removed $root$second"
    fi
    update_store
}

# --- names -----------------------------------------------------------------------------------------------------------

# Standard output: a hosts file as it is without our block, byte for byte.
without_block() {
    first=$(sed -n "/^$begin/=" "$1")
    last=$(sed -n "/^$end\$/=" "$1")
    if [ -z "$first$last" ]; then
        cat "$1"
        return
    fi
    case "$first,$last" in
        *[!0-9,]* | ,* | *,) fail "$1 holds a part of a block of mitm-cache, or several: take them out by hand" ;;
    esac
    [ "$first" -lt "$last" ] || fail "$1 holds a block of mitm-cache that ends before it begins: take it out by hand"
    head -n "$((first - 1))" "$1" >"$work/above"
    tail -n "+$((last + 1))" "$1" >"$work/below"
    if [ -s "$work/above" ] && [ ! -s "$work/below" ] && sed -n "${first}p" "$1" | grep -q "$unended"; then
        dd bs="$(($(wc -c <"$work/above") - 1))" count=1 <"$work/above" 2>/dev/null
    else
        cat "$work/above" "$work/below"
    fi
}

lead_names() {
    hosts=$root/etc/hosts
    [ -f "$hosts" ] || fail "$hosts is not there"
    without_block "$hosts" >"$work/hosts"
    mark=$begin
    if [ -s "$work/hosts" ] && [ -n "$(tail -c 1 "$work/hosts")" ]; then
        mark=$begin$unended
        echo >>"$work/hosts"
    fi
    {
        echo "$mark"
        for cache in $caches; do
            echo "$names" | sed "s/^/$cache /"
        done
        echo "$end"
    } >>"$work/hosts"
    if cmp -s "$hosts" "$work/hosts"; then
        echo "$hosts leads to $caches already"
    else
        replace "$hosts" "$work/hosts"
        echo "$hosts now leads the registries' names to $caches"
    fi
}

# --- mirrors ---------------------------------------------------------------------------------------------------------

# Standard output: a mirror's HOST:PORT, one for each cache.
mirrors() {
    for cache in $caches; do
        case $cache in
            *:*) echo "[$cache]:$mirror_port" ;;
            *) echo "$cache:$mirror_port" ;;
        esac
    done
}

mirror_for_containerd() {
    has containerd || [ -d "$root/etc/containerd" ] || return 0
    known=1
    {
        echo "# mitm-cache: every registry by the cache, and by itself where the cache does not answer."
        mirrors | while read -r place; do
            printf '[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$place"
        done
    } >"$work/hosts.toml"
    own /etc/containerd/certs.d/_default/hosts.toml "$work/hosts.toml"
    if [ -n "$foreign" ]; then
        echo "$root/etc/containerd/certs.d/_default/hosts.toml is somebody else's; for the cache add to it:"
        sed 's/^/  /' "$work/hosts.toml"
    fi
    if ! grep -q "^[[:space:]]*config_path *= *[\"'][^\"']" "$root/etc/containerd/config.toml" 2>/dev/null; then
        echo "For Kubernetes $root/etc/containerd/config.toml must name that directory, and containerd be restarted:"
        echo '  containerd 1: [plugins."io.containerd.grpc.v1.cri".registry]'
        echo '  containerd 2: [plugins."io.containerd.cri.v1.images".registry]'
        echo '                config_path = "/etc/containerd/certs.d"'
    fi
}

mirror_for_podman() {
    has podman || has buildah || has skopeo || has crio || [ -d "$root/etc/containers" ] || return 0
    known=1
    {
        echo "# mitm-cache: these registries by the cache, and by themselves where it does not answer."
        for registry in $mirrored; do
            printf '\n[[registry]]\nprefix = "%s"\nlocation = "%s"\n' "$registry" "$registry"
            mirrors | while read -r place; do
                printf '[[registry.mirror]]\nlocation = "%s/%s"\ninsecure = true\n' "$place" "$registry"
            done
        done
    } >"$work/mitm-cache.conf"
    own /etc/containers/registries.conf.d/mitm-cache.conf "$work/mitm-cache.conf"
    [ -z "$foreign" ] ||
        echo "$root/etc/containers/registries.conf.d/mitm-cache.conf is somebody else's and stays as it is"
}

mirror_for_docker() {
    has dockerd || [ -d "$root/etc/docker" ] || return 0
    known=1
    list=$(mirrors | sed 's|.*|"http://&"|' | tr '\n' ',' | sed 's/,$//; s/,/, /g')
    printf '{"registry-mirrors": [%s]}\n' "$list" >"$work/daemon.json"
    own /etc/docker/daemon.json "$work/daemon.json"
    if [ -n "$foreign" ]; then
        echo "$root/etc/docker/daemon.json is somebody else's; for Docker Hub by the cache it needs:"
        echo "  \"registry-mirrors\": [$list]"
    fi
}

mirror() {
    known=''
    mirror_for_containerd
    mirror_for_podman
    mirror_for_docker
    if [ -d "$root/etc/rancher" ]; then
        known=1
        echo "For k3s and RKE2, in $root/etc/rancher/k3s/registries.yaml (rke2/registries.yaml):"
        echo '  mirrors: {"*": {endpoint: ['"$(mirrors | sed 's|.*|"http://&"|' | tr '\n' ',' | sed 's/,$//')"']}}'
    fi
    [ -n "$known" ] || echo "Found no containerd, podman, CRI-O or dockerd: nothing was set up."
}

# --- all of it -------------------------------------------------------------------------------------------------------

tell_restart() {
    daemons=''
    for daemon in "dockerd docker" "containerd containerd" "crio crio" "k3s k3s" "rke2 rke2-server"; do
        # containerd reads its mirrors each time.
        [ "$daemon,$way" != "containerd containerd,mirror" ] || continue
        ! has "${daemon% *}" || daemons="$daemons ${daemon#* }"
    done
    if [ -z "$daemons" ]; then
        echo "Nothing has to be restarted."
    elif has systemctl; then
        echo "Restart what runs of these, which read it when they start: systemctl restart$daemons"
    else
        echo "Restart what runs of these, which read it when they start:$daemons"
    fi
}

take_back() {
    rm -f "$root/etc/hosts.mitm-cache-new"
    if [ -f "$root/etc/hosts" ]; then
        without_block "$root/etc/hosts" >"$work/hosts"
        if ! cmp -s "$root/etc/hosts" "$work/hosts"; then
            replace "$root/etc/hosts" "$work/hosts"
            echo "$root/etc/hosts leads to the cache no more"
            undone=1
        fi
    fi
    for copy in "$root$state/files"/*; do
        copy=${copy%.new}
        target=$(basename "$copy" | tr % /)
        if [ ! -e "$copy" ] && [ ! -e "$copy.new" ]; then
            continue    # no copy at all, or removed with its old one a moment ago
        elif is_ours "$target" "$copy"; then
            rm -f "$root$target"
            echo "Removed $root$target"
        elif [ -e "$root$target" ]; then
            echo "$root$target was changed after the set-up, and stays as it is"
        fi
        rm -f "$root$target.mitm-cache-new"
        case $target in
            */mitm-cache.crt)
                find_store
                update_store
                ;;
        esac
        rm -f "$copy" "$copy.new"
        undone=1
    done
    [ -d "$root$state" ] || return 0
    undone=1
    for directory in $(sed '1!G;h;$!d' "$root$state/made" 2>/dev/null || :); do
        rmdir "$root$directory" 2>/dev/null || :
    done
    rm -rf "$root$state"
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --undo) undo=1 ;;
            hosts | mirror)
                [ -z "$way" ] || misused "one way at a time"
                way=$1
                ;;
            --cache | --fingerprint)
                [ $# -ge 2 ] || misused "$1 needs a value"
                if [ "$1" = --cache ]; then add_cache "$2"; else given=$2; fi
                shift
                ;;
            *) misused "$1 is no argument of this script" ;;
        esac
        shift
    done
    [ -z "$undo" ] || [ -z "$way$caches" ] || misused "--undo takes no way and no address: it undoes everything"
    way=${way:-hosts}
}

add_cache() {
    cache=${1#\[}
    cache=${cache%\]}
    case $cache in
        '' | *[!0-9a-fA-F.:]*) fail "--cache $1 is not an address such as 192.0.2.10 or 2001:db8::10" ;;
        *.*.*.* | *:*:*) caches="${caches:+$caches }$cache" ;;
        *) fail "--cache $1 is not an address such as 192.0.2.10 or 2001:db8::10" ;;
    esac
}

# A cache has to listen where this way looks for it.
check_way() {
    if [ "$way" = hosts ]; then
        [ "$tls_port" = 443 ] ||
            fail "this cache listens on ${tls_port:-no port} for TLS, and a hosts entry holds no port: it must be 443"
        caches=${caches:-$tls_host}
    else
        [ -n "$mirror_port" ] || fail "this cache has no mirror listener"
        caches=${caches:-$mirror_host}
    fi
}

main() {
    parse "$@"
    case $version in
        @*) fail "this is a template: a cache serves it with its own facts, as http://CACHE/setup.sh" ;;
    esac
    check_fingerprint
    [ -n "$undo" ] || check_way
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 129' HUP INT TERM
    if [ -n "$undo" ]; then
        undone=''
        take_back
        if [ -z "$undone" ]; then
            echo "This node was not set up for a mitm-cache."
            return
        fi
    elif [ "$way" = hosts ]; then
        open_state
        # Trust comes first, and at the undo goes last: a name that leads to a cache nobody trusts stops every pull.
        trust
        lead_names
    else
        open_state
        mirror
    fi
    tell_restart
    [ -n "$undo" ] || [ ! -f "$root$state/setup.sh" ] || echo "To undo it: sh $root$state/setup.sh --undo, as root"
}

# On the last line, so that a part of this script does nothing.
main "$@"
