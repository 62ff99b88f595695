"""The vb tags of disks: where an image comes from, what it must be, who may replace it. Part of the table in tags.py."""

from vmbatch.tagforms import DEVICE, HEX, LIST, NUMBER, WORD, Attribute, Tag

_YES_NO = ("yes", "no")
_SOURCE = Attribute(
    "source",
    "a file (a relative name lies in [paths] images), or a URL: http, https, ftp, ftps",
    pattern=r"\S[\s\S]*",
    shape="path or URL",
    required=True,
)
_FORMATS = Attribute(
    "format",
    "the image's format as qemu-img names it: raw, qcow2, vmdk, vdi, vpc, vhdx; without it, the <driver type=...> says it",
    pattern=WORD,
    shape="name",
    slides=False,
)
_FETCH = (
    _SOURCE,
    Attribute(
        "copy_method",
        "download: fetched once for each job, which may write to it; shared: once for the image, and kept in the store",
        ("download", "shared"),
        required=True,
    ),
    _FORMATS,
    Attribute(
        "copy_on_write",
        "for a shared image that guests write to: yes gives each job an overlay, no a copy of its own",
        _YES_NO,
        default="yes",
        slides=False,
    ),
)
_CREATE = (
    Attribute("source", "a name for the new disk", pattern=r"\S[\s\S]*", shape="name", required=True),
    Attribute("size", "size in MB (1048576 bytes)", pattern=NUMBER, shape="number", required=True),
    Attribute(
        "create",
        "always: a new empty disk for each job; once: made for the first job, which writes to it, and kept with its "
        "content; a job that begins while others use it has an overlay",
        ("always", "once"),
        required=True,
    ),
    Attribute(
        "format",
        "as qemu-img names it: raw, qcow2, vpc, vdi and so on; vhd-util-vhd is a VHD, made with vhd-util on Xen",
        pattern=WORD,
        shape="name",
        default="qcow2",
    ),
    Attribute(
        "owner",
        "whose a disk made once is: one for each user, or one for the site",
        ("user", "site"),
        default="user",
        slides=False,
    ),
    Attribute(
        "busy",
        "what a job does while the first one still writes to the disk: wait for its end, or begin with an empty overlay",
        ("wait", "overlay"),
        default="wait",
        slides=False,
    ),
)

DISK_TAGS: dict[str, Tag] = {
    "vbdisks": Tag(("devices",), "layout of the disks, for DISK", "<vbdisks>...</vbdisks>"),
    "vbdisk": Tag(
        ("vbdisks",),
        "where a part of the guest lies: rootdisk holds its root file system, jobdisk the job's files",
        "<vbdisk name='rootdisk' dev='vda' partition='vda2'/>",
        (
            (
                Attribute("name", "the part", ("rootdisk", "jobdisk"), required=True),
                Attribute("dev", "the <target dev=...> of the disk", pattern=DEVICE, shape="device", required=True),
                Attribute(
                    "partition",
                    "the partition as the guest names it; without it a file system fills the disk",
                    pattern=DEVICE,
                    shape="device",
                ),
            ),
        ),
        many=True,
    ),
    "vbdisksource": Tag(
        ("disk",),
        "where the disk's content comes from: fetched, or created empty",
        "<vbdisksource source='http://images.example.org/el9.qcow2' copy_method='shared'/>",
        (_FETCH, _CREATE),
        second="<vbdisksource source='cache' size='20480' create='once'/>",
    ),
    "vbcheckhash": Tag(
        ("disk",),
        "the hash that the fetched image must have; computed by vmbatch itself while the bytes arrive",
        "<vbcheckhash hashfunction='/usr/bin/md5sum' hashvalue='826164d1748929445e805b57929c8f7e'/>",
        (
            (
                Attribute(
                    "hashfunction",
                    "md5, sha1, sha256 or sha512, also as the path of a program such as /usr/bin/md5sum",
                    pattern=r"\S+",
                    shape="name",
                    required=True,
                ),
                Attribute("hashvalue", "the hash, hexadecimal", pattern=HEX, shape="hexadecimal digits", required=True),
            ),
        ),
    ),
    "vbpreparecdrom": Tag(
        ("disk",),
        "the CD-ROM with the job's context goes here",
        "<vbpreparecdrom source='context.iso'/>",
        ((Attribute("source", "a name for the ISO, for people"),),),
    ),
    "vbuserimage": Tag(
        ("disk",),
        "a user's choice of image goes here: an image of the catalogue, or the user's own file or URL where the attributes "
        "allow it. Beside a <vbdisksource> the choice replaces that; without a name it is the image that the VM request "
        "begins with",
        "<vbuserimage name='data' paths='/scratch' formats='raw qcow2' maxsize='20480'/>",
        (
            (
                Attribute(
                    "name", "users choose it with image.NAME=", pattern=r"[a-z][a-z0-9_\-]*", shape="name", slides=False
                ),
                Attribute(
                    "paths",
                    "folders in which own images may lie; each part of a path may be a pattern",
                    pattern=LIST,
                    shape="list",
                    slides=False,
                ),
                Attribute(
                    "urls",
                    "addresses from which own images may come, such as https://images.example.org/*",
                    pattern=LIST,
                    shape="list",
                    slides=False,
                ),
                Attribute(
                    "formats",
                    "formats that own images may have",
                    pattern=LIST,
                    shape="list",
                    default="raw qcow2",
                    slides=False,
                ),
                Attribute(
                    "maxsize",
                    "largest own image, and largest disk that it may describe, in MB",
                    pattern=NUMBER,
                    shape="number",
                    default="[users] max_image_mib",
                    slides=False,
                ),
                Attribute(
                    "optional",
                    "yes: without a choice the guest does not have this disk",
                    _YES_NO,
                    default="no",
                    slides=False,
                ),
            ),
        ),
    ),
}
