#!/bin/sh
# Prepares a guest for its job. Called at boot, as root, by the image's own start-up or by cloud-init:
#   init.sh start|start-cloud FOLDER    FOLDER holds params, runjob and the keys: /vmbatch of the disk where that is there,
#                                       else the ISO's vmbatch folder or a copy of it
#   init.sh ready FOLDER                waits until sshd listens, then says so to the host
# Runs under dash, busybox and bash. Everything that it says goes to the host over a virtio port or a serial line.

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
umask 022
what=$1
folder=$2

find_port() {
	for name in /sys/class/virtio-ports/*/name; do
		[ -r "$name" ] || continue
		read -r text < "$name"
		[ "$text" = org.vmbatch.ready ] || continue
		device=${name%/name}
		port=/dev/${device##*/}
		return
	done
	port=/dev/ttyS1
	stty -F $port raw -echo 2>/dev/null || stty raw -echo < $port 2>/dev/null
}

report() {
	[ -n "$port" ] || find_port
	printf '%s\n' "$*" > "$port"
	echo "vmbatch: $*" > /dev/kmsg 2>/dev/null
}

give_up() {
	report "error $*"
	echo "vmbatch: $*" > /dev/console
	exit 1
}

# --- network ---

card() {
	for address in /sys/class/net/*/address; do
		read -r mac < "$address"
		[ "$mac" = "$1" ] || continue
		device=${address%/address}
		echo "${device##*/}"
		return
	done
	return 1
}

netmask() {
	bits=$1 mask=
	for _ in 1 2 3 4; do
		if [ "$bits" -ge 8 ]; then part=255; bits=$((bits - 8))
		else part=$((256 - (1 << (8 - bits)))); bits=0; fi
		mask=$mask${mask:+.}$part
	done
	echo "$mask"
}

static_network() {
	if command -v ip > /dev/null; then
		ip link set lo up
		ip addr add "$VMBATCH_ADDRESS" dev "$1" && ip link set "$1" up || return 1
		[ -z "$VMBATCH_GATEWAY" ] || ip route add default via "$VMBATCH_GATEWAY"
	else
		ifconfig lo 127.0.0.1 up
		ifconfig "$1" "${VMBATCH_ADDRESS%/*}" netmask "$(netmask "${VMBATCH_ADDRESS#*/}")" up || return 1
		[ -z "$VMBATCH_GATEWAY" ] || route add default gw "$VMBATCH_GATEWAY"
	fi
}

name_servers() { # where nothing else looks after them
	[ -n "$VMBATCH_DNS" ] || return 0
	while read -r word _; do [ "$word" != nameserver ] || return 0; done < /etc/resolv.conf
	for server in $VMBATCH_DNS; do echo "nameserver $server"; done >> /etc/resolv.conf
} 2> /dev/null

dhcp_network() {
	if command -v ip > /dev/null; then ip link set lo up; ip link set "$1" up
	else ifconfig lo 127.0.0.1 up; ifconfig "$1" up; fi
	if command -v dhclient > /dev/null; then dhclient -1 "$1"
	elif command -v dhcpcd > /dev/null; then dhcpcd -w "$1"
	else udhcpc -i "$1" -n -q -t 20 -T 1 -s "$folder/udhcpc.sh"; fi
}

network() {
	name=$(card "$VMBATCH_MAC") || give_up "the guest has no driver for its network card ($VMBATCH_MAC)"
	if [ -n "$VMBATCH_ADDRESS" ]; then
		static_network "$name" || give_up "cannot give $name the address $VMBATCH_ADDRESS"
	else
		dhcp_network "$name" || give_up "no DHCP answer on $name"
	fi
}

# --- the submitting user ---

put_first() { # FILE LINE NAME ID: our line first, others of that name away; a second name for the id may stay below
	[ -f "$1" ] || : > "$1"
	{
		printf '%s\n' "$2"
		while IFS= read -r old || [ -n "$old" ]; do
			case $old in "$3":*) ;; *) printf '%s\n' "$old" ;; esac
		done < "$1"
	} > "$1.vmbatch" && cat "$1.vmbatch" > "$1" && rm -f "$1.vmbatch"
}

groups() {
	for pair in $VMBATCH_GROUPS; do
		name=${pair%:*} gid=${pair##*:} members=
		[ "$gid" = "$VMBATCH_GID" ] || members=$VMBATCH_USER
		[ "$gid" = 0 ] || put_first /etc/group "$name:x:$gid:$members" "$name"
	done
}

# The login shell only starts our helper, so it is the quickest one. Shells that a user sees come from $SHELL.
user() {
	groups
	if [ "$VMBATCH_UID" != 0 ]; then
		put_first /etc/passwd "$VMBATCH_USER:x:$VMBATCH_UID:$VMBATCH_GID::$VMBATCH_HOME:/bin/sh" "$VMBATCH_USER"
		put_first /etc/shadow "$VMBATCH_USER:*:19000:0:99999:7:::" "$VMBATCH_USER"
		chmod go= /etc/shadow
	fi
	own "$VMBATCH_HOME" || give_up "cannot make the home directory $VMBATCH_HOME"
	[ "$VMBATCH_WORKDIR" = "$VMBATCH_HOME" ] || own "$VMBATCH_WORKDIR" ||
		give_up "cannot make the working directory $VMBATCH_WORKDIR"
}

own() { # a folder that exists in the image (/, /tmp, /usr) stays as it is
	[ ! -d "$1" ] || case $1 in "$VMBATCH_HOME") ;; *) return 0 ;; esac
	mkdir -p "$1" && chown "$VMBATCH_UID:$VMBATCH_GID" "$1"
}

keys() {
	mkdir -p "$VMBATCH_HOME/.ssh" /etc/ssh
	cat "$folder/client.pub" >> "$VMBATCH_HOME/.ssh/authorized_keys" || return 1
	chmod 700 "$VMBATCH_HOME/.ssh"
	chmod 600 "$VMBATCH_HOME/.ssh/authorized_keys"
	chown -R "$VMBATCH_UID:$VMBATCH_GID" "$VMBATCH_HOME/.ssh"
	(umask 077 && cat "$folder/host_key" > /etc/ssh/ssh_host_ed25519_key) || return 1
	cat "$folder/host_key.pub" > /etc/ssh/ssh_host_ed25519_key.pub
	rm -f "$folder/host_key" 2> /dev/null || : # fails on the CD-ROM itself, which the host ejects
}

helper() {
	mkdir -p /var/lib/vmbatch/job
	[ "$folder/runjob" = /var/lib/vmbatch/runjob ] || cp "$folder/runjob" /var/lib/vmbatch/runjob
	chmod 755 /var/lib/vmbatch /var/lib/vmbatch/runjob
	chmod 700 /var/lib/vmbatch/job
	: > /var/lib/vmbatch/job/stamp
	if [ -n "$VMBATCH_JOBPATH" ]; then
		mkdir -p "$VMBATCH_JOBPATH" && chown "$VMBATCH_UID:$VMBATCH_GID" "$VMBATCH_JOBPATH" || return 1
		echo "$VMBATCH_JOBPATH" > /var/lib/vmbatch/jobpath
	fi
	chown -R "$VMBATCH_UID:$VMBATCH_GID" /var/lib/vmbatch/job
}

archives() {
	for archive in "$folder"/archive*.tar; do
		[ ! -r "$archive" ] || tar -x -f "$archive" -C / || give_up "cannot unpack ${archive##*/}: is the disk full?"
	done
}

start() {
	report "stage context"
	[ -r "$folder/params" ] || give_up "$folder holds no params"
	. "$folder/params"
	[ -z "$VMBATCH_HOSTNAME" ] || hostname "$VMBATCH_HOSTNAME" 2>/dev/null ||
		echo "$VMBATCH_HOSTNAME" > /proc/sys/kernel/hostname
	[ "$what" = start-cloud ] || network
	name_servers
	report "stage network"
	user
	archives
	keys || give_up "cannot write the ssh keys"
	helper || give_up "cannot install the helper that runs jobs"
}

# --- ready ---

listens() {
	while read -r _ local _ state _; do
		case $local:$state in *:0016:0A) return 0 ;; esac
	done < "$1"
	return 1
}

has_link() { # some cards take seconds to find their cable; who has no such file is not asked
	name=$(card "$VMBATCH_MAC") && read -r carrier 2> /dev/null < "/sys/class/net/$name/carrier" || return 0
	[ "$carrier" = 1 ]
}

ready() {
	. "$folder/params"
	count=0
	until has_link || [ $count -eq 100 ]; do
		count=$((count + 1))
		sleep 0.1 2>/dev/null || sleep 1
	done
	count=0
	until listens /proc/net/tcp || { [ -r /proc/net/tcp6 ] && listens /proc/net/tcp6; }; do
		count=$((count + 1))
		[ $count -ne 3000 ] || give_up "no ssh server listens on port 22 of the guest"
		sleep 0.1 2>/dev/null || sleep 1
	done
	report "stage ssh"
	report "ready"
}

case $what in
start | start-cloud) start ;;
ready) ready ;;
*) echo "usage: init.sh start|start-cloud|ready FOLDER" >&2; exit 2 ;;
esac
