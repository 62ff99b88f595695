"""Man pages and completion, made from the tables that make the program: the parser, the configuration, the request.

Format: man(7) macros, checked by the tests with man --warnings.
"""

import argparse
from collections.abc import Iterator

from vmbatch import callforms, catalogue, templatepage, troff
from vmbatch.model import Image
from vmbatch.request import FIELDS, IMAGE_KEY, MAX_BYTES
from vmbatch.settings import CHOICES, documented, toml

EXIT_CODES = (
    ("0", "done"),
    ("1", "refused or failed"),
    ("2", "wrong usage"),
    ("3", "this node cannot run VMs, or its administrator must act"),
)
SHELL_CODES = (
    ("0 to 255", "the job's own exit code; 128+N where signal N ended it"),
    ("120", "the guest was lost, rebooted or powered off"),
    ("121", "the job ended with 0, but its files could not all be collected"),
    ("125", "there is no guest, or the request was refused"),
    ("126, 127", "the command cannot be run in the guest, or is not found there"),
)


def pages() -> dict[str, str]:
    """Return file name -> page in man(7) format."""
    return {
        "vmbatch.1": _vmbatch(),
        "vmbatch-remoteshell.1": _remoteshell(),
        "vmbatch.toml.5": _config(),
        "vmbatch-images.5": _images(),
        "vmbatch-template.5": templatepage.page(),
        "vmbatch-request.7": _request(),
    }


def _vmbatch() -> str:
    from vmbatch.cli import parser

    top = parser()
    page = troff.head("vmbatch", 1, "run batch jobs inside virtual machines")
    page += troff.section("SYNOPSIS", ".B vmbatch\n[\\-\\-config FILE] COMMAND [ARGUMENTS]\n")
    page += troff.section(
        "DESCRIPTION",
        "Starts, shows and stops the virtual machines of batch jobs, and installs itself as the prologue and epilogue of a "
        "batch system.\n",
    )
    page += ".SH COMMANDS\n"
    for name, sub in subparsers(top).items():
        page += f".SS vmbatch {troff.escape(name)}\n{troff.escape(sub.description or '')}\n" + _options(sub)
        for action, deeper in subparsers(sub).items():
            page += f".PP\n.B vmbatch {troff.escape(name)} {troff.escape(action)}\n" + _options(deeper)
        page += ".PP\nExamples:\n.nf\n" + "".join(f"{troff.escape(x.strip())}\n" for x in _examples(sub)) + ".fi\n"
    page += troff.section("EXIT STATUS", troff.items(EXIT_CODES))
    page += ".PP\n.B vmbatch run\nand\n.B vmbatch shell\nreturn the exit codes of\n.BR vmbatch\\-remoteshell (1).\n"
    return page + troff.see("vmbatch-remoteshell(1)", "vmbatch.toml(5)", "vmbatch-images(5)", "vmbatch-request(7)")


def _examples(sub: argparse.ArgumentParser) -> list[str]:
    return (sub.epilog or "").splitlines()[1:]


def _options(sub: argparse.ArgumentParser) -> str:
    return troff.items(tuple(_described(sub)))


def _described(sub: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    formatter = sub._get_formatter()
    for action in sub._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help is None:
            continue
        text = formatter._expand_help(action)
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        if action.choices:
            value = "|".join(str(one) for one in action.choices)
        yield (", ".join(action.option_strings) + (f" {value}" if value else "")).strip() or action.dest, text


def _remoteshell() -> str:
    denied = ", ".join(name.decode() for name in callforms.DENIED)
    prefixes = ", ".join(name.decode() + "*" for name in callforms.DENIED_PREFIXES)
    page = troff.head("vmbatch-remoteshell", 1, "the shell of a batch job, in its virtual machine")
    page += troff.section("SYNOPSIS", ".B vmbatch\\-remoteshell\n[SCRIPT|COMMAND [ARGUMENTS]]\n")
    page += troff.section(
        "DESCRIPTION",
        "Runs the job's script or command in the job's guest, with its standard streams, signals and exit code. The batch "
        "system calls it as the job's shell; it may also stand in the first line of a script.\n.PP\n"
        "Without arguments it reads the script from standard input, or opens a shell on a terminal. A script in the batch "
        "system's spool or a file of the user's own is carried into the guest; a file below the working directory is there "
        "already; anything else is found in the guest's PATH.\n.PP\n"
        "Before the first command of a job its input files are brought in (see vmbatch\\-request(7), in=); when the last "
        "shell of the job ends, what the job created or changed below its working directory is collected. Files that the "
        "job removed stay on the host. What is missing is named in a file vmbatch\\-JOB\\-incomplete.txt.\n",
    )
    page += troff.section(
        "ENVIRONMENT",
        f"The job's environment reaches the guest unchanged, but for: {troff.escape(denied)}, {troff.escape(prefixes)}.\n",
    )
    return page + troff.section("EXIT STATUS", troff.items(SHELL_CODES)) + troff.see("vmbatch(1)", "vmbatch-request(7)")


def _config() -> str:
    page = troff.head("vmbatch.toml", 5, "configuration of vmbatch")
    page += troff.section(
        "DESCRIPTION",
        "/etc/vmbatch/vmbatch.toml, for an ordinary user ~/.config/vmbatch/vmbatch.toml. TOML; a number is in the unit that "
        "the key's name says, and a string may carry another one: \\(dq2G\\(dq, \\(dq5m\\(dq.\n",
    )
    last = ""
    for section, one in documented():
        if section != last:
            page += f".SH [{section}]\n"
            last = section
        choices = CHOICES.get(f"{section}.{one.name}")
        default = toml(one.default)
        text = one.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "") + f" (default: {default})"
        page += troff.items(((one.name, text),))
    return page + troff.see("vmbatch(1)")


def _images() -> str:
    page = troff.head("vmbatch-images", 5, "the image catalogue of vmbatch")
    page += troff.section(
        "DESCRIPTION",
        "/etc/vmbatch/images.d/NAME.toml describes image NAME. Only source is required.\n",
    )
    defaults = {one.name: one.default for one in Image.__dataclass_fields__.values()}
    items = []
    for key, text in catalogue.KEYS.items():
        allowed = catalogue.CHOICES.get(key)
        default = defaults.get(key)
        shown = f" (default: {default})" if isinstance(default, str | int) and default != "" else ""
        items.append((key, text + (f"; one of {', '.join(allowed)}" if allowed else "") + shown))
    return page + troff.section("KEYS", troff.items(tuple(items))) + troff.see("vmbatch(1)", "vmbatch.toml(5)")


def _request() -> str:
    page = troff.head("vmbatch-request", 7, "what a user asks for: the VM request")
    page += troff.section("SYNOPSIS", "IMAGE[:KEY=VALUE]...\n")
    page += troff.section(
        "DESCRIPTION",
        "The same text on every batch system: sbatch \\-\\-vm=REQUEST, vmbatch run \\-\\-image REQUEST. A colon separates "
        "only where KEY= follows it. Any byte may be written %XX; a literal colon before a word and = is %3A, a percent "
        f"sign %25. At most {MAX_BYTES} bytes.\n",
    )
    closed = "; only where the template has <vbuseroption name='{}'/>"
    items = tuple(
        (f"{one.name}=", f"{one.help} (such as {one.example})" + ("" if one.open else closed.format(one.name)))
        for one in (*FIELDS, IMAGE_KEY)
    )
    return page + troff.section("KEYS", troff.items(items)) + troff.see("vmbatch(1)", "vmbatch-images(5)")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the subcommands of a parser by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def bash_completion() -> str:
    """Return completion for bash: subcommands, their options, and choices."""
    from vmbatch.cli import parser

    cases = []
    for name, sub in subparsers(parser()).items():
        words = [option for action in sub._actions for option in action.option_strings]
        words += [str(choice) for action in sub._actions if action.choices for choice in action.choices]
        for deeper in subparsers(sub).values():
            words += [option for action in deeper._actions for option in action.option_strings]
            words += [str(choice) for action in deeper._actions if action.choices for choice in action.choices]
        cases.append(f"\t{name}) words='{' '.join(sorted(set(words)))}' ;;")
    names = " ".join(subparsers(parser()))
    return (
        "# bash completion for vmbatch\n"
        "_vmbatch() {\n"
        "\tlocal word=${COMP_WORDS[COMP_CWORD]} words sub=\n"
        "\tfor ((i = 1; i < COMP_CWORD; i++)); do [[ ${COMP_WORDS[i]} == -* ]] || { sub=${COMP_WORDS[i]}; break; }; done\n"
        "\tcase $sub in\n" + "\n".join(cases) + f"\n\t*) words='{names} --config --version --help' ;;\n\tesac\n"
        '\tmapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")\n'
        "}\n"
        "complete -o default -F _vmbatch vmbatch\n"
    )
