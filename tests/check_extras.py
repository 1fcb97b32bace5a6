"""Every extra of pyproject.toml in turn, in an environment that has just that: its commands run, others name theirs.

`python tests/check_extras.py` makes a virtual environment per extra, which takes minutes and the package index;
`--hide` runs in this environment and hides what the extras alone install.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "fuzz"))
from world import draw_pictures, publish_networks  # noqa: E402 it lies beside the fuzzers

BARE = "bare"
# What an extra is for: command lines that need it, and nothing else that is optional. The bare ones come first and make
# what the others read.
USES: dict[str, tuple[str, ...]] = {
    BARE: (
        "teacher import DiT.pt --num-heads 2 --out teacher",
        "collect --teacher teacher --out store --num 4 --num-teacher-steps 4 --num-steps 2 --workers 1 --device cpu",
        "distill --trajectories store --out student --iterations 2 --batch-size 2 --warmup 0 --device cpu",
        "evaluate --make-ref pictures --out ref.npz --inception inception.pth --device cpu",
        "evaluate --samples pictures --ref ref.npz --metrics fid --inception inception.pth --device cpu",
        "flops --model DiT-XL/2 --num-steps 4",
        "plan --preset imagenet256-ard",
    ),
    "demo": ("teach --out digits --iterations 2 --warmup 0 --device cpu", "analyze masks --out masks.svg"),
    "eval": (
        "evaluate --samples pictures --ref pictures --metrics fd-dinov2 --dinov2 dinov2 --device cpu",
        "evaluate --samples pictures --ref pictures --metrics cmmd --clip clip --device cpu",
    ),
    "latent": (
        "sample --student student --vae vae --labels 0-1 --seeds 0 --out decoded.png --device cpu",
        "images cache --images pictures --vae vae --size 8 --out cache --device cpu",
    ),
    "data": ("evaluate --make-ref saved --out saved.npz --inception inception.pth --device cpu",),
    "lora": ("distill --trajectories store --out adapted --lora-rank 2 --iterations 1 --batch-size 2 --device cpu",),
    "pipeline": ("export --student student --out exported --samples 0 --device cpu",),
    "text": ("text encode --prompts prompts.txt --encoder pixart --out text --device cpu",),
}
MODULES = {"scikit-learn": "sklearn", "protobuf": "google"}
RUN = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
from ard.cli import main
main()
"""


def main() -> int:
    """The exit status: 1 when a command of an environment did not do what it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hide", action="store_true", help="hide packages in place of making environments")
    parser.add_argument("--extras", default=",".join(USES), help="which, separated by commas")
    options = parser.parse_args()
    faults = 0
    for extra in options.extras.split(","):
        with tempfile.TemporaryDirectory(prefix="ard-extras-") as folder:
            place = Path(folder, "world")
            _make_world(place)
            python = sys.executable if options.hide else _environment(Path(folder, "venv"), extra)
            hidden = _hidden(extra) if options.hide else []
            for owner in [BARE, *(one for one in USES if one != BARE)]:
                for line in USES[owner]:
                    fault = _fault(python, hidden, place, line, owner, must_work=owner in {BARE, extra})
                    faults += fault is not None
                    print(f"{extra}: ard {line}: {fault or 'as it should'}", flush=True)
    return int(faults > 0)


def _fault(python: str, hidden: list[str], place: Path, line: str, owner: str, *, must_work: bool) -> str | None:
    """What is wrong with how a command ended; packages come along with others, so that it may always work."""
    words = [python, "-c", RUN.format(hidden=hidden), *line.split()]
    result = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False, env=_variables())
    if result.returncode == 0:
        return None
    last = result.stderr.strip().splitlines()[-1:]
    if must_work or "Traceback" in result.stderr:
        return f"exit status {result.returncode}: {last}"
    said = f"pip install '.[{owner}]'" in result.stderr and result.returncode == 2
    return None if said else f"does not name the extra {owner}: {last}"


def _environment(folder: Path, extra: str) -> str:
    """The Python of a new environment with ard and one extra, in the pinned versions; PyTorch is lent to it."""
    venv.create(folder, with_pip=True)
    python, what = str(folder / "bin" / "python"), str(ROOT) if extra == BARE else f"{ROOT}[{extra}]"
    ours = distribution("torch")
    for name in {path.parts[0] for path in ours.files or [] if ".." not in path.parts}:
        site_packages = next(folder.glob("lib/python*/site-packages"))
        (site_packages / name).symlink_to(Path(str(ours.locate_file(name))).resolve())
    pinned = ["--constraint", str(ROOT / "requirements.txt")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pinned, what], check=True)
    return python


def _hidden(extra: str) -> list[str]:
    """The modules of the packages that other extras name and this one does not."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {extra: {line.partition(">")[0] for line in lines} for extra, lines in extras.items() if extra in USES}
    others = set().union(*needed.values()) - needed.get(extra, set())
    return sorted(MODULES.get(name, name) for name in others | {"torchvision", "torch_fidelity"})


def _variables() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _make_world(folder: Path) -> None:
    """What the commands read. This Python has every extra."""
    import datasets
    import torch
    import transformers

    from ard.evaluation.features.inception_network import InceptionNetwork

    folder.mkdir()
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        publish_networks()
        draw_pictures()
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        transformers.Dinov2Model(transformers.Dinov2Config(**shape, patch_size=56, image_size=280)).save_pretrained(
            "dinov2"
        )
        vision = transformers.CLIPVisionConfig(**shape, patch_size=112, image_size=336, projection_dim=8)
        transformers.CLIPVisionModelWithProjection(vision).save_pretrained("clip")
        pictures = [{"image": {"bytes": path.read_bytes(), "path": None}} for path in Path("pictures").glob("*/*.png")]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_list(pictures, features=features).save_to_disk("saved")
        torch.save(InceptionNetwork().state_dict(), "inception.pth")


if __name__ == "__main__":
    sys.exit(main())
