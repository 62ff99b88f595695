"""Ways to bring the payload into a guest: one Payload, several carriers."""

# CLOUDINIT is the same ISO; domain.py also announces it to cloud-init, which then neither searches nor waits.
MODULES = {"CDROM": "cdrom", "CLOUDINIT": "cdrom", "DISK": "disk"}
