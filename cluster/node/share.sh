#!/usr/bin/env bash
# share.sh: the folder that all nodes see, for a sweep's --out: journals are appended to, which no bucket can do.
#
#   share.sh mount SERVER:/PATH        mount an NFS 4.1 share (EFS, Filestore, the head's own disk) on /mnt/cromss
#   share.sh serve DEVICE NETWORK      head only: DEVICE (made a file system once, never again) exported to NETWORK alone
set -euo pipefail
place=/mnt/cromss

have() { dpkg -s "$1" > /dev/null 2>&1 || { sudo apt-get update -q && sudo apt-get install -y -q --no-install-recommends "$1"; }; }

case "${1:-}" in
  mount)
    have nfs-common
    sudo mkdir -p "$place"
    mountpoint -q "$place" ||
      sudo mount -t nfs4 -o nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport "$2" "$place"
    ;;
  serve)
    device="$2" network="$3"
    case "$network" in
      */8 | */9 | */1[0-9] | */2[0-9] | */3[0-2]) ;;
      *) echo "share.sh: $network: must be the cluster's own subnet, as 10.0.0.0/20" >&2; exit 2 ;;
    esac
    have nfs-kernel-server
    sudo blkid "$device" > /dev/null || sudo mkfs.ext4 -q -m 0 "$device"
    sudo mkdir -p "$place"
    mountpoint -q "$place" || sudo mount -o nodev,nosuid "$device" "$place"
    echo "$place $network(rw,sync,no_subtree_check,root_squash)" | sudo tee /etc/exports.d/cromss.exports > /dev/null
    sudo exportfs -ra
    ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
[ -w "$place" ] || sudo chown "$(id -u):$(id -g)" "$place"
