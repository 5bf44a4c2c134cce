"""``qlib-llm-alpha mine``: propose factors, admit what chance does not explain, count every trial."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qlib_llm_alpha.cli.chat import Keyboard
from qlib_llm_alpha.cli.printing import shown
from qlib_llm_alpha.cli.progress import progress_bar
from qlib_llm_alpha.errors import ConfigError

LABEL = "Ref($close,-2)/Ref($close,-1)-1"
PROPOSERS = ("random", "genetic", "llm")


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "mine",
        help="propose factors and admit those that chance does not explain",
        description="Propose formulas, judge them on the days from --start to --end and write the session to --out. No "
        "bar after --end is read, except on the days of --tune and only for what was admitted. A proposer that learns "
        "from its results (genetic, llm) learns on the first 60 percent of the days; what it arrives at is judged on "
        "the others. `mine compare` lets several proposers try as many formulas each. Exit codes: 0 done, whether or "
        "not anything was admitted; 2 a bad call, or a model that gave no answer (go on with --resume).",
    )
    parser.add_argument("action", nargs="?", choices=("compare",), help="set several proposers beside each other")
    parser.add_argument("--provider", type=Path, required=True, metavar="DIR", help="folder of the Qlib provider")
    parser.add_argument("--universe", default="all", help="a market of the provider (default: all)")
    parser.add_argument("--start", required=True, metavar="D", help="first day of the search segment")
    parser.add_argument("--end", required=True, metavar="D", help="last day of the search segment")
    parser.add_argument(
        "--tune", nargs=2, metavar=("D", "D"), help="score what was admitted on these later days; counted in the ledger"
    )
    parser.add_argument(
        "--proposer",
        action="append",
        choices=PROPOSERS,
        help="who proposes (default: random); several times to compare",
    )
    parser.add_argument("--trials", type=int, default=500, metavar="N", help="formulas to try (default: 500)")
    parser.add_argument(
        "--shortlist",
        type=int,
        default=50,
        metavar="N",
        help="how many of a learning proposer's formulas are judged (default: 50)",
    )
    parser.add_argument(
        "--formulas",
        action="append",
        default=[],
        metavar="FILE",
        help="judge these as well (random), or begin with them (genetic): a text with one formula a line, a factor set "
        "(.yaml) or the name of a built-in set; may be given several times",
    )
    parser.add_argument(
        "--library", metavar="SET", help="a factor set that is there already: what repeats or resembles it is rejected"
    )
    parser.add_argument("--label", default=LABEL, metavar="EXPR", help=f"what is to be forecast (default: {LABEL})")
    parser.add_argument("--alpha", type=float, default=0.05, help="chance at which a worthless run admits anything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ledger", type=Path, default=Path("ledger"), metavar="DIR", help="default: ledger")
    parser.add_argument("--out", type=Path, required=True, metavar="SESSION", help="a new folder")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the session in --out; no answer is asked for twice"
    )
    parser.add_argument("--json", action="store_true", help="print the session's facts as JSON")
    _add_model_options(parser.add_argument_group("with --proposer llm"))
    parser.set_defaults(run=run)


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mode",
        choices=("live", "record", "replay"),
        help="live: ask the endpoint of OPENAI_BASE_URL with OPENAI_API_KEY; record: the same, and write "
        "SESSION/recording.jsonl; replay: take every answer from --recording and ask nobody (default: LLM_MODE, else "
        "replay)",
    )
    group.add_argument("--model", metavar="NAME", help="default: OPENAI_MODEL, or that of the recording")
    group.add_argument(
        "--documents",
        metavar="DIR",
        help="papers, reports and notes to take ideas from; `embedded`: the notes that are shipped",
    )
    group.add_argument("--recording", metavar="FILE", help="recorded answers; `embedded` is the one that is shipped")
    group.add_argument("--budget-usd", type=float, metavar="X", help="stop before the call that would pass it")
    group.add_argument(
        "--budget-tokens", type=int, default=500_000, metavar="N", help="the same in tokens (default: 500000)"
    )
    group.add_argument(
        "--names", type=Path, metavar="FILE", help="companies and other names to mask, one a line, beside the codes"
    )
    group.add_argument(
        "--rounds", type=int, default=10, metavar="N", help="rounds of learning after the documents (default: 10)"
    )
    group.add_argument("--models", type=Path, metavar="FILE", help="a model registry of your own, see docs/llm.md")
    group.add_argument(
        "--extend", type=Path, metavar="SESSION", help="keep that session's library and read only what is new"
    )
    group.add_argument("--charts", type=int, default=0, metavar="N", help="show the model N charts (default: none)")
    group.add_argument(
        "--feedback",
        choices=("true", "none", "shuffled"),
        default="true",
        help="what a proposer hears of its results; none and shuffled are controls (default: true)",
    )
    group.add_argument(
        "--not-blind", action="store_true", help="send documents as they are: dates, codes and names included"
    )
    group.add_argument("--chat", action="store_true", help="work an idea out with the model, at the keyboard")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from qlib_llm_alpha import wiring

    proposers = args.proposer or ["random"]
    given = {
        name: value
        for name, value in vars(args).items()
        if name not in ("action", "command", "run", "json", "proposer", "chat", "provider", "universe", "out", "help")
    }
    given["tune"] = None if args.tune is None else tuple(args.tune)
    _check_model_options(args, proposers)
    if args.action == "compare":
        return _compare(args, proposers, given)
    if len(proposers) > 1:
        raise ConfigError(f"--proposer was given {len(proposers)} times; expected one; `mine compare` takes several")
    if args.chat:
        wiring.chat(args.provider, args.universe, out=args.out, port=Keyboard(), **given)
    else:
        with progress_bar("formula") as progress:
            wiring.mine_factors(
                args.provider, args.universe, out=args.out, proposer=proposers[0], progress=progress, **given
            )
    if args.json:
        print(json.dumps(json.loads((args.out / "session.json").read_text(encoding="utf-8"))))
    else:
        print(shown((args.out / "report.md").read_text(encoding="utf-8")), end="")
        print(f"\nWritten to {args.out}; every trial is in {args.ledger}.")
    return 0


def _check_model_options(args: argparse.Namespace, proposers: list[str]) -> None:
    """Refuse options that only a language model has, where none is asked."""
    if "llm" in proposers or args.chat:
        if args.chat and (args.action == "compare" or proposers not in (["random"], ["llm"])):
            raise ConfigError("--chat was given with another proposer; expected it alone: the ideas are the person's")
        return
    names = ("mode", "model", "documents", "recording", "budget_usd", "names", "models", "charts", "not_blind")
    used = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if used:
        raise ConfigError(
            f"{', '.join(used)} was given, and no language model is asked; expected --proposer llm or --chat with it; "
            "add one, or leave it out"
        )


def _compare(args: argparse.Namespace, proposers: list[str], given: dict[str, Any]) -> int:
    from qlib_llm_alpha import wiring

    with progress_bar("search") as progress:
        table = wiring.compare_proposers(
            args.provider, args.universe, out=args.out, proposers=proposers, progress=progress, **given
        )
    print(json.dumps(table.to_dict()) if args.json else shown(table.to_markdown()))
    return 0
