#!/usr/bin/env bash
# The first process of a host: waits for its network interface, sets up its own disk, runs sshd and reaps orphans.
#
#   host.sh NAME ADDRESS GATEWAY FOLDER KEEP...
#
# FOLDER holds the files of its installer: hosts, bashrc, authorized_keys, host_key. Its disk is mounted there too.
# KEEP is ro:PATH or rw:PATH, a path of this machine that the host sees too. Besides it sees only the system.
set -eu
name=$1 address=$2 gateway=$3 folder=$4
shift 4

read -r pid _ </proc/self/stat # in the numbering of the cloud; here it is 1
echo "$pid"
read -r _ # the interface is connected

hostname "$name"
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "$gateway" # leads nowhere, but without a default route Ray cannot find its own address

mount --make-rprivate /
disk=$folder/disk
mkdir -p "$disk"
mount -t tmpfs -o mode=755,size=4g "$name" "$disk"
cd "$disk"
see() { # see ro|rw PATH
    if [[ -d $2 ]]; then mkdir -p ".$2"; else mkdir -p ".${2%/*}" && touch ".$2"; fi
    mount --rbind "$2" ".$2"
    [[ $1 == rw ]] || mount -o remount,bind,ro ".$2"
}
for each in bin sbin lib lib32 lib64 libx32 usr etc; do
    if [[ -L /$each ]]; then cp -P "/$each" .; elif [[ -d /$each ]]; then see ro "/$each"; fi
done
mkdir -p proc root/.ssh run/sshd tmp var/log var/tmp before
: >var/log/lastlog
chmod 1777 tmp var/tmp
chmod 700 root root/.ssh
see rw /dev
see rw /sys
mount -t tmpfs -o mode=1777,size=1g shm dev/shm
mount -t proc proc proc
for each in "$@"; do see "${each%%:*}" "${each#*:}"; done
cp "$folder/bashrc" root/.bashrc
cp "$folder/authorized_keys" root/.ssh/authorized_keys
cp "$folder/hosts" "$folder/host_key" run/
chmod 600 root/.ssh/authorized_keys run/host_key
: >run/resolv.conf # no name server
for each in hosts resolv.conf; do [[ ! -f etc/$each ]] || mount --bind "run/$each" "etc/$each"; done
pivot_root . before
cd /
umount -l before
rmdir before

cat >/run/sshd_config <<CONFIG
ListenAddress $address
HostKey /run/host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
MaxSessions 100
MaxStartups 100
CONFIG
exec </dev/null >/run/sshd.log 2>&1
env -i PATH="$PATH" /usr/sbin/sshd -D -e -f /run/sshd_config &
while :; do wait -n || sleep 1; done
