#!/bin/busybox sh
# First and only process of a test machine: mounts what a real host has, runs the tests, powers off.
# Lines beginning with `@vm ` are read by xtask; an empty line goes before them, since a program that dies may leave
# half a line behind.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=dumb

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname portwatch-vm
ip link set lo up
# Named one by one: the order matters, and there is no modprobe configuration here.
for module in inet_diag tcp_diag udp_diag; do
    [ ! -e /modules/$module.ko ] || insmod /modules/$module.ko || printf '\n@vm complaint cannot load %s\n' "$module"
done

printf '\n@vm kernel %s\n' "$(uname -r)"
sh /tests
# A kernel that complains during the tests is a failure, whatever the tests say.
dmesg | grep -E 'BUG:|Oops|WARNING: |general protection|soft lockup|hung task' | sed 's/^/@vm complaint /'
printf '\n@vm end\n'
sync
poweroff -f
