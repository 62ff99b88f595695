"""The vb tags: one table that makes the parser's checks, the RELAX NG schema and vmbatch-template(5).

The tags of the slides of 2015 keep their spelling. What the slides do not show (attributes lost in print, settings that
VmBatch kept in configuration files) is ours, and says so.
"""

from vmbatch.disktags import DISK_TAGS
from vmbatch.tagforms import ABSOLUTE, ANY, LIST, NUMBER, WORD, Attribute, Tag

# The disks' tags are in disktags.py.
TAGS: dict[str, Tag] = {
    "vbconfig": Tag(
        ("domain",),
        "settings of vmbatch for the whole domain",
        "<vbconfig>...</vbconfig>",
    ),
    "vbpreparemethod": Tag(
        ("vbconfig",),
        "how the guest is told its job: on a CD-ROM, in files put into its disk before it boots, over ssh as root, or on a "
        "CD-ROM for cloud-init (ROOTSSH: not in this version)",
        "<vbpreparemethod>CDROM</vbpreparemethod>",
        values=("CDROM", "DISK", "ROOTSSH", "CLOUDINIT"),
        own=("CLOUDINIT",),
        default="CDROM",
    ),
    "vbhypervisor": Tag(
        ("vbconfig",),
        "what runs the guest; AUTO is KVM, or emulation where KVM does not work and the site allows it. Without the tag the "
        "domain's type says it: kvm AUTO, qemu QEMU, xen XEN4, vbox VIRTUALBOX",
        "<vbhypervisor>KVM</vbhypervisor>",
        values=("XEN3", "XEN4", "KVM", "QEMU", "AUTO", "VIRTUALBOX"),
        own=("KVM", "QEMU", "AUTO", "VIRTUALBOX"),
    ),
    "vbjobpath": Tag(
        ("vbconfig",),
        "folder of the guest in which the job's script lies",
        "<vbjobpath>/torque/mom_priv/jobs</vbjobpath>",
        pattern=ABSOLUTE,
        shape="absolute path",
    ),
    "vbtarfiles": Tag(("vbconfig",), "tar archives that are unpacked for the guest", "<vbtarfiles>...</vbtarfiles>"),
    "vbtarfile": Tag(
        ("vbtarfiles",),
        "one archive, plain or packed with gzip, bzip2 or xz; unpacked in the guest before the job, as root",
        "<vbtarfile tarfile='alice.tar' path='.' strip='1' option='cdrom'/>",
        (
            (
                Attribute(
                    "tarfile",
                    "the archive; a relative name lies in [paths] tarfiles",
                    pattern=r"\S[\s\S]*",
                    shape="path",
                    required=True,
                ),
                Attribute("path", "the folder to unpack in; a relative one starts at the root folder", default="."),
                Attribute(
                    "strip",
                    "how many leading folders of each name are left out",
                    pattern=r"[0-9]{1,2}",
                    shape="number",
                    default="0",
                ),
                Attribute("option", "cdrom: onto the CD-ROM's file system, such as a CernVM context.sh", ("cdrom",)),
            ),
        ),
        many=True,
    ),
    "vbbootparameters": Tag(
        ("vbconfig",),
        "further parameters for the kernel line of a guest whose kernel is booted directly",
        "<vbbootparameters>quiet selinux=0</vbbootparameters>",
        pattern=ANY,
        shape="text",
        slides=False,
    ),
    "vbaddressing": Tag(
        ("vbconfig",),
        "how the guest gets its address: static (its context says it) or dhcp",
        "<vbaddressing>dhcp</vbaddressing>",
        values=("static", "dhcp"),
        default="[network] addressing",
        slides=False,
    ),
    "vbremoteshell": Tag(
        ("vbconfig",),
        "how the job's shell enters the guest (CONSOLE: not in this version)",
        "<vbremoteshell>SSH</vbremoteshell>",
        values=("SSH", "CONSOLE"),
        default="SSH",
        slides=False,
    ),
    "vbstaging": Tag(
        ("vbconfig",),
        "what is brought into the guest where the job does not say in=",
        "<vbstaging in='none'/>",
        ((Attribute("in", "the whole submit directory, or nothing", ("workdir", "none"), required=True, slides=False),),),
        slides=False,
    ),
    "vbuseroptions": Tag(
        ("vbconfig",),
        "what users may choose beyond the image, the template, memory= and cpus=",
        "<vbuseroptions>...</vbuseroptions>",
        slides=False,
    ),
    "vbuseroption": Tag(
        ("vbuseroptions",),
        "opens one key of the VM request, or limits it; a key that is not named stays closed, but memory and cpus are open",
        "<vbuseroption name='memory' max='4096'/>",
        (
            (
                Attribute(
                    "name",
                    "the key",
                    ("memory", "cpus", "network", "tar", "kernelargs", "kernel", "initrd", "root", "cdrom"),
                    required=True,
                    slides=False,
                ),
                Attribute(
                    "values",
                    "allowed values, patterns with * and ?; for network and root, and for each word of "
                    "kernelargs; empty: any",
                    pattern=LIST,
                    shape="list",
                    slides=False,
                ),
                Attribute(
                    "max",
                    "largest value: MB for memory, tar, kernel, initrd and cdrom; a number for cpus",
                    pattern=NUMBER,
                    shape="number",
                    slides=False,
                ),
                Attribute(
                    "paths",
                    "where the user's files may lie, for tar, kernel, initrd and cdrom: folders, each part "
                    "of a path may be a pattern",
                    pattern=LIST,
                    shape="list",
                    slides=False,
                ),
            ),
        ),
        many=True,
        slides=False,
    ),
    "vbnic": Tag(
        ("devices",),
        "the job's network card goes here; without the tag it takes the place of the first <interface>, or is added",
        "<vbnic/>",
        (
            (
                Attribute(
                    "network", "nat, isolated or user", pattern=WORD, shape="name", default="[network] default", slides=False
                ),
            ),
        ),
        slides=False,
    ),
    **DISK_TAGS,
}
