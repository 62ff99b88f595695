"""vmbatch-template(5): the reference of the tags, made from their table."""

from vmbatch import troff
from vmbatch.tagforms import Attribute, Tag
from vmbatch.tags import TAGS
from vmbatch.troff import escape

_ABOUT = (
    'A domain template is libvirt domain XML (see "Domain XML format" in libvirt\'s documentation) with the tags below. '
    "Each tag is replaced by what it asks for, or removed. vmbatch adds name, uuid, memory, processors, the console on the "
    "first serial port and the channel on which the guest says that it is ready. The site's templates lie in "
    "/etc/vmbatch/domain-templates; vmbatch check --template FILE looks whether one is right, vmbatch template convert "
    "turns one for Xen into one for KVM."
)
_ORIGIN = (
    "What is marked VmBatch 2015 is as in the slides of that year; what is marked new was added since. "
    "vmbatch template schema prints the same table as a RELAX NG schema, for editors."
)


def page() -> str:
    """Return the page in man(7) format."""
    text = troff.head("vmbatch-template", 5, "domain templates of vmbatch")
    text += troff.section("DESCRIPTION", f"{escape(_ABOUT)}\n.PP\n{escape(_ORIGIN)}\n")
    text += ".SH TAGS\n" + "".join(_tag(name, tag) for name, tag in TAGS.items())
    return text + troff.see("vmbatch(1)", "vmbatch-images(5)", "vmbatch-request(7)")


def _tag(name: str, tag: Tag) -> str:
    where = "> or <".join(tag.parents)
    text = f".SS <{escape(name)}> ({_origin(tag.slides)})\n"
    text += escape(f"In <{where}>{', any number of times' if tag.many else ''}: {tag.help}.") + "\n"
    facts = []
    if tag.values:
        ours = f" (new: {', '.join(tag.own)})" if tag.own else ""
        facts.append(("Values", ", ".join(tag.values) + ours))
    elif tag.pattern:
        facts.append(("Value", tag.shape))
    if tag.default:
        facts.append(("Default", tag.default))
    text += troff.items(tuple(facts))
    examples = (tag.example, tag.second)
    for number, form in enumerate(tag.forms):
        if len(tag.forms) > 1:
            text += ".PP\nEither:\n" if number == 0 else ".PP\nOr:\n"
        text += troff.items(tuple((one.name, described(one)) for one in form))
        text += f".PP\nExample: {escape(examples[number])}\n"
    return text


def described(one: Attribute) -> str:
    """Say in a line what an attribute means, which values it takes, and where it comes from."""
    values = ", ".join(one.values) if one.values else one.shape
    parts = [one.help, f"value: {values}"]
    if one.default:
        parts.append(f"default: {one.default}")
    parts.append("required" if one.required else "optional")
    return "; ".join(parts) + f" ({_origin(one.slides)})"


def _origin(slides: bool) -> str:
    return "VmBatch 2015" if slides else "new"
