#!/bin/sh
# Runs a command as a container of a pod would be: with a root of its own that cannot be written to, the pod's volumes in it,
# and a user and groups of its own. It is started by `unshare --mount`, and becomes the command.
#
#   container.sh ROOT UID:GID GROUP VOLUME:MOUNT:ro|rw… -- COMMAND…
#
# The network is the machine's own, as it is one for all containers of a pod.
set -eu
root=$1 user=$2 group=$3
shift 3

mount --make-rprivate /
mount --bind "$root" "$root"
# The machine's libraries and tools stand in for what an image holds.
mkdir -p "$root/usr" "$root/dev" "$root/proc" "$root/tmp"
mount --rbind /usr "$root/usr"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
while [ "$1" != -- ]; do
    volume=${1%%:*} rest=${1#*:}
    mount_path=${rest%:*} mode=${rest##*:}
    mkdir -p "$root$mount_path"
    mount --bind "$volume" "$root$mount_path"
    [ "$mode" = rw ] || mount -o remount,bind,ro "$root$mount_path"
    shift
done
shift
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid="${user%:*}" --regid="${user#*:}" --groups="$group" --no-new-privs \
    --bounding-set=-all --inh-caps=-all "$@"
