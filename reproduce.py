r"""Measure a table of the paper: plan its runs, make those that are missing, write the results. It goes on after an interruption.

    python reproduce.py                                              # a line for each table, nothing is run
    python reproduce.py --table cifar10 --epochs-scale 0.15 --result result/mine    # plan and run; shortened, cosine
    python reproduce.py --table cifar10 --rows "resnet20, 3 bits" --list
    python reproduce.py --table conversion --networks result/published --amp --compile --seeds 0 1 2 --readme result/tables.md
    python reproduce.py --table imagenet --rows alexnet --data /data/imagenet2012

Each stage is a call of main.py, dali_main.py, snn.py or snn_ft.py in {study}/{stage}, with a record of its flags, revision and
result; rows and tables share stages. After each one result/table_{table}.json, .csv and, with spiking rows, .png are written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils import cli, script
from utils.errors import UserError
from utils.files import write_text
from utils.study import markdown, pictures, results, stages, table_file
from utils.study.plan import Plan, duration
from utils.study.results import PUBLISHED, Result, Row
from utils.study.tables import FLOAT_FILE, FROM_FLOAT, TABLES, rows_of

ALL = ("",)  # part of every row's name


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", choices=TABLES, help="the table to measure (default: only plan all of them, a line for each)")
    add("--list", action="store_true",
        help="only plan --table: which runs are there, which are missing, how long they would take")
    add("--rows", nargs="+", default=ALL, metavar="TEXT",
        help='only rows of these names, or whose name holds one of these, as "2 bits, signed"')
    add("--seeds", nargs="+", type=cli.count(0, "seed"), default=[0],
        help="of training, calibration and tuning; a run without random numbers runs once (default: 0)")
    add("--epochs-scale", type=cli.number(float, 0, 1, "part of the schedule"), default=1.0, metavar="PART",
        help="part of the published epochs for each training; below 1 with a cosine schedule (default: 1)")
    add("--amp", action="store_true", help="train, and tune through time, in bfloat16")
    add("--compile", action="store_true", help="compile the training steps of quantized networks, and of tuning through time")
    add("--float", type=Path, dest="start", metavar="FILE",
        help=f"{FROM_FLOAT}: the float ResNet-20 to start from, ours or a published one (default: {FLOAT_FILE})")
    add("--networks", type=Path, metavar="DIR", help="start from the files {arch}_{bit}bit.pth.tar in DIR, not from trainings")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="where CIFAR-10, or ImageNet, is (default: data)")
    add("--study", type=Path, default=Path("result/study"), metavar="DIR", help="where the stages are (default: result/study)")
    add("--result", type=Path, default=Path("result"), metavar="DIR", help="where table_*.* go (default: result)")
    add("--readme", type=Path, metavar="FILE", help="a file with the table's markers, to put the table in")
    args = parser.parse_args(argv)
    if args.networks and args.table not in (None, "ablation", "conversion", "latency"):
        raise UserError(f"--networks {args.networks}: the table {args.table} measures trainings; leave it out")
    if args.networks and args.networks.is_file():
        raise UserError(f"--networks {args.networks}: is a file; name the directory of the files {{arch}}_{{bit}}bit.pth.tar")
    if args.networks and args.epochs_scale < 1:
        raise UserError(f"--networks {args.networks}: nothing is trained; leave --epochs-scale out")
    if args.networks and args.table not in (None, "conversion") and (args.amp or args.compile):
        raise UserError(f"--networks {args.networks}: nothing is trained; the table {args.table} does not tune through time, so "
                        "leave --amp and --compile out")
    if args.start and args.table not in (None, FROM_FLOAT):
        raise UserError(f"--float {args.start}: the table {args.table} trains its float network; name the table {FROM_FLOAT}")
    if args.table in ("fast", FROM_FLOAT) and args.epochs_scale < 1:
        raise UserError(f"--epochs-scale {args.epochs_scale:g}: the fast recipe has epochs of its own; leave it out")
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: a seed counts once")
    if args.readme and (args.list or args.table is None):
        raise UserError(f"--readme {args.readme}: a plan makes no table; leave --list out and name a --table")
    if args.readme:
        markdown.insert(args.readme.read_text(), args.table, "")  # missing markers are found before hours of work
    return args


def table_rows(table: str, args: argparse.Namespace) -> list[Row]:
    """Return all rows of a table."""
    extra = (*["--amp"] * args.amp, *["--compile"] * args.compile)
    return rows_of(table, args.seeds, args.data, args.study, args.epochs_scale, extra, args.networks, args.start)


def in_brief(args: argparse.Namespace) -> bool:
    """Return whether all tables are planned, with a line for each."""
    return args.table is None and args.rows == ALL


def choose(rows: dict[str, list[Row]], texts: Sequence[str]) -> dict[str, list[Row]]:
    """Return the rows of each table whose name is one of the texts, or holds a text that is not the whole name of a row.

    Tables without such a row are left out.

    Raises:
        UserError: a text is in no name.
    """
    names = {row.name for every in rows.values() for row in every}
    for text in texts:
        if not any(text in name for name in names):
            raise UserError(f"--rows {text!r}: no row of {', '.join(rows)} has such a name; --table NAME --list tells them")
    meant = {name for name in names for text in texts if name == text or (text in name and text not in names)}
    found = {table: [row for row in every if row.name in meant] for table, every in rows.items()}
    return {table: chosen for table, chosen in found.items() if chosen}


def print_plan(rows: list[Row], plan: Plan, known: list[Result]) -> None:
    """Print each row with its result, if known, and its missing runs."""
    before = {result.key: result for result in known}
    width = max(len(row.name) for row in rows)
    print(f"{'row':<{width}}{'missing, with its networks':>28}   {'measured so far':<36}published")
    for row in rows:
        lacks = plan.of_row(row)
        state = f"{len(lacks)} runs, {duration(plan.minutes(lacks))}" if lacks else "measured"
        state = "its network is not here" if row.name in plan.lost else state
        old = before.get(row.key)
        epochs, *recipe = (old.epochs if old else "").split(",")
        result = "" if old is None else f"{old.mean:.2f} % ({','.join([epochs + ' epochs' * epochs[:1].isdigit(), *recipe])})"
        found = PUBLISHED.get((row.networks.dataset, *row.key))
        published = markdown.NONE_PUBLISHED if found is None else f"{found.accuracy:.2f} %"
        print(f"{row.name:<{width}}{state:>28}   {result:<36}{published}")
    print(f"{missing(plan)}\n", flush=True)


def missing(plan: Plan) -> str:
    """Return how many runs are missing, and how long they would take."""
    return f"{len(plan.missing)} runs are missing, about {duration(plan.minutes(plan.missing))}"


def collect(rows: list[Row], study: Path) -> list[Result]:
    """Return the results of the rows whose stages have all run."""
    found = []
    for row in rows:
        chains = [[stages.record_of(stage, study) for stage in chain] for chain in row.chains]
        if all(record is not None for records in chains for record in records):
            found.append(results.measured(row, chains))
    return found


def write(table: str, rows: list[Row], chosen: list[Row], args: argparse.Namespace) -> list[Result]:
    """Write the table with the measured results of the chosen rows; results of others stay. Return all results."""
    path = args.result / f"table_{table}.json"
    found = table_file.merged(table_file.read(path), collect(chosen, args.study), [row.key for row in rows])
    if found:
        args.result.mkdir(parents=True, exist_ok=True)
        table_file.write(found, path)
        pictures.draw(table, found, path.with_suffix(".png"))
    return found


def work(table: str, rows: list[Row], chosen: list[Row], args: argparse.Namespace) -> list[Result]:
    """Plan a table's chosen rows and, unless only a plan was asked for, make the missing runs; return all results.

    Raises:
        UserError: results of other networks are there; at the end, rows could not be measured because their network is missing.
    """
    path = args.result / f"table_{table}.json"
    known = table_file.read(path)
    if not args.list:
        table_file.check_same(known, chosen, path)
    plan = Plan(chosen, args.study)
    if in_brief(args):
        lost = f"; {len(plan.lost)} rows lack their network" * bool(plan.lost)
        print(f"table {table:<18}{len(chosen):>4} rows, {len(known)} have a result; {missing(plan)}{lost}", flush=True)
        return known
    print(f"table {table}")
    print_plan(chosen, plan, known)
    if args.list:
        if plan.lost:
            print(plan.remedy)
        return known
    for stage in plan.missing:
        if stage.init and args.study not in stage.init.parents and not stage.init.is_file():
            flag = "--networks DIR" if args.networks else "--float FILE"
            raise UserError(f"{stage.init} does not exist: {flag} names another place")
    for number, stage in enumerate(plan.missing, start=1):
        print(f"\n{number}/{len(plan.missing)} {stage.name}", flush=True)
        stages.run(stage, args.study)
        write(table, rows, chosen, args)
    found = write(table, rows, chosen, args)
    drawn = ", .png" * path.with_suffix(".png").exists()
    print(f"{len(found)} of {len(rows)} rows" + f": {path}, .csv{drawn}" * bool(found))
    if args.readme and found:
        write_text(args.readme, markdown.insert(args.readme.read_text(), table, markdown.table(found)))
    if plan.lost:
        raise UserError(plan.remedy)
    return found


def main(argv: list[str] | None = None) -> dict[str, list[Result]]:
    """Run the script; return the results of each table."""
    args = parse(argv)
    args.list = args.list or args.table is None
    rows = {table: table_rows(table, args) for table in ([args.table] if args.table else TABLES)}
    found = {table: work(table, rows[table], chosen, args) for table, chosen in choose(rows, args.rows).items()}
    if in_brief(args):
        print("\na result may be of a shorter schedule than these flags ask for\n"
              "next: --table NAME --list tells the rows of a table, --table NAME makes its missing runs")
    return found


if __name__ == "__main__":
    script.run(main)
