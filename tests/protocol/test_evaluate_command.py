"""ard evaluate under the ADM protocol, from files to JSON, with the real networks and random weights."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import ard
from ard.evaluation.features.inception import Inception

Pictures = Callable[..., NDArray[Any]]
Evaluated = Callable[..., str]
COUNT = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: Pictures, write_pngs: Callable[..., Path]) -> Path:
    return write_pngs(tmp_path_factory.mktemp("pictures") / "a", pictures(COUNT))


@pytest.fixture(scope="module")
def reference(folder: Path, inception_file: Path, evaluated: Evaluated) -> Path:
    """What --make-ref writes for the folder."""
    out = folder.parent / "new" / "ref.npz"
    text = evaluated("--make-ref", folder, "--out", out, "--inception", inception_file, "--num-kept", 8)
    assert f"statistics of {COUNT} images, 8 of them kept" in text
    return out


@pytest.fixture(scope="module")
def against_itself(folder: Path, reference: Path, inception_file: Path, evaluated: Evaluated) -> tuple[str, Any]:
    """What is printed and what is written when a folder is compared with the reference made of it."""
    out = folder.parent / "itself.json"
    options = ["--samples", folder, "--ref", reference, "--inception", inception_file, "--json", out]
    return evaluated(*options), json.loads(out.read_text())


class TestReferenceFile:
    """--make-ref."""

    def test_the_statistics_are_numpys_of_the_networks_features(
        self, reference: Path, inception: Inception, pictures: Pictures
    ) -> None:
        output = inception(torch.from_numpy(pictures(COUNT)))
        with np.load(reference) as arrays:
            for features, mean, covariance in ((output.pool3, "mu", "sigma"), (output.spatial, "mu_s", "sigma_s")):
                values = features.double().numpy()
                np.testing.assert_allclose(arrays[mean], values.mean(axis=0), rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(arrays[covariance], np.cov(values, rowvar=False), rtol=1e-2, atol=1e-3)
            assert np.array_equal(arrays["arr_0"], pictures(COUNT)[[0, 1, 2, 3, 5, 6, 7, 8]])

    def test_nothing_else_is_left_in_the_folder(self, reference: Path) -> None:
        assert [path.name for path in reference.parent.iterdir()] == ["ref.npz"]


class TestAgainstItself:
    """The ADM metrics of pictures compared with themselves."""

    def test_the_distances_are_zero(self, against_itself: tuple[str, Any]) -> None:
        metrics = against_itself[1]["metrics"]
        assert 0 <= metrics["fid"] < 1e-2  # Between other pictures it is above 100.
        assert 0 <= metrics["sfid"] < 1e-2

    def test_precision_and_recall_are_one(self, against_itself: tuple[str, Any]) -> None:
        metrics = against_itself[1]["metrics"]
        assert (metrics["precision"], metrics["recall"]) == (1, 1)

    def test_the_default_metrics_are_adms(self, against_itself: tuple[str, Any]) -> None:
        names = {"fid", "sfid", "inception_score", "inception_score_std", "precision", "recall"}
        assert against_itself[1]["metrics"].keys() == names
        for name in ("FID", "sFID", "IS", "precision", "recall"):
            assert re.search(rf"^{name} ", against_itself[0], re.MULTILINE)

    def test_the_json_holds_what_a_second_evaluation_must_share(
        self, against_itself: tuple[str, Any], folder: Path, reference: Path, inception_file: Path
    ) -> None:
        result = against_itself[1]
        assert result["evaluator"]["name"] == "ard"
        assert result["evaluator"]["version"] == ard.__version__
        assert result["networks"].keys() == {"inception"}
        network = result["networks"]["inception"]
        assert network["weights"] == str(inception_file)
        assert re.fullmatch(r"[0-9a-f]{64}", network["sha256"])
        assert "TensorFlow 1 bilinear" in network["resize"]
        assert network["dtype"].startswith("float32")
        assert result["samples"] | {"num": COUNT, "height": 16, "width": 16, "path": str(folder)} == result["samples"]
        assert (result["reference"]["path"], result["reference"]["pictures"]["num"]) == (str(reference), 8)
        assert result["reference"]["statistics"] == ["mu", "mu_s"]
        assert (result["settings"]["pr_distances"], result["settings"]["neighbours"]) == ("exact", 3)
        assert any("not the published" in note for note in result["notes"])


def test_kid_fd_dinov2_and_cmmd_come_from_their_own_networks(
    folder: Path,
    tmp_path: Path,
    evaluated: Evaluated,
    pictures: Pictures,
    inception_file: Path,
    dinov2_folder: Path,
    clip_folder: Path,
) -> None:
    np.savez(tmp_path / "samples.npz", arr_0=pictures(6, seed=1))
    options = ["--metrics", "kid,fd-dinov2,cmmd", "--dinov2", dinov2_folder, "--clip", clip_folder]
    compared = ["--samples", tmp_path / "samples.npz", "--ref", folder, "--inception", inception_file]
    text = evaluated(*compared, *options, "--num", 5, "--json", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["metrics"].keys() == {"kid", "kid_std", "fd_dinov2", "cmmd"}
    assert result["metrics"]["fd_dinov2"] > 0
    assert result["networks"].keys() == {"inception", "dinov2", "clip"}
    assert result["samples"]["num"] == 5
    assert "FID" not in text.replace("not FID", "")
    assert re.search(r"^FD-DINOv2 ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "seeds", "labels"),
    [
        (["--num", 4], "1000000-1000003", "random"),
        (["--seeds", "7-9", "--labels", "balanced"], "7-9", "balanced"),
    ],
)
def test_a_student_is_sampled_and_the_result_says_how(
    student_folder: Path,
    tmp_path: Path,
    evaluated: Evaluated,
    inception_file: Path,
    options: list[object],
    seeds: str,
    labels: str,
) -> None:
    compared = ["--samples", student_folder, "--metrics", "is", "--inception", inception_file]
    evaluated(*compared, *options, "--json", tmp_path / "out.json")
    samples = json.loads((tmp_path / "out.json").read_text())["samples"]
    assert (samples["kind"], samples["seeds"], samples["labels"]) == ("student", seeds, labels)
    assert samples["guidance"]["cfg_scale"] == 1.25
    assert samples["greyscale"] == samples["num"] == (4 if labels == "random" else 3)


def test_two_processes_give_the_numbers_of_one(
    folder: Path, tmp_path: Path, evaluated: Evaluated, pictures: Pictures, dinov2_folder: Path, clip_folder: Path
) -> None:
    """Odd numbers of samples and of kept pictures, so that the shares differ."""
    np.savez(tmp_path / "samples.npz", arr_0=pictures(7, seed=1))
    networks = ["--dinov2", dinov2_folder, "--clip", clip_folder, "--metrics", "fd-dinov2,cmmd", "--num-kept", 3]
    options = ["--samples", tmp_path / "samples.npz", "--ref", folder, *networks, "--batch-size", 2]
    evaluated(*options, "--json", tmp_path / "one.json")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "ard", "evaluate", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ard.__file__).parents[1])}
    command = [sys.executable, *map(str, words), "--json", str(tmp_path / "two.json"), "--device", "cpu"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("written to") == 1
    one, two = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("one.json", "two.json"))
    assert two == pytest.approx(one, rel=1e-5)


REFUSALS = {
    "nothing": ("", "--student is empty; name a student's folder, or give --samples or --make-ref"),
    "two ways at once": ("--student student --samples a", "--student and --samples exclude each other"),
    "reference and samples": ("--samples a --make-ref a", "--samples and --make-ref exclude each other"),
    "teacher with samples": ("--samples a --teacher t", "--teacher and --samples exclude each other"),
    "weights with students": ("--student student --inception i.pth", "--inception has no meaning with --student"),
    "numbers of a reference": ("--make-ref a --out r.npz --json o.json", "--json has no meaning with --make-ref"),
    "unknown metric": ("--samples a --ref a --metrics fid,isc", "unknown 'isc'; allowed: fid, sfid, is, pr, kid"),
    "no metric": ("--samples a --ref a --metrics=", "unknown ''; allowed: fid"),
    "no weights": ("--samples a --ref a", "pt_inception-2015-12-05-6726825d.pth is needed: give it with --inception"),
    "no weights for a reference": ("--make-ref a --out r.npz", "is needed: give it with --inception"),
    "weights that are not there": ("--samples a --ref a --inception no.pth", "no.pth does not exist"),
    "weights of another network": ("--samples a --ref a --metrics fd-dinov2 --inception i.pth", "with --dinov2 PATH"),
    "no reference": ("--samples a --inception i.pth", "fid compares with a reference: give --ref"),
    "reference that is not there": ("--samples a --ref no.npz --inception i.pth", "no.npz does not exist"),
    "reference that is no file": ("--samples a --ref no --inception i.pth", "no is no student, no .npz file and no"),
    "a student as reference": ("--samples a --ref student --inception i.pth", "student is no student, no .npz"),
    "samples that are not there": ("--samples no --ref a", "no is no student, no .npz file and no folder of images"),
    "samples of another size": ("--samples a --ref b --inception i.pth", "the samples have 16 x 16 pixels and the"),
    "more than there are": ("--samples a --ref a --num 99", "--num 99: a has 10 images; allowed: 1 to that"),
    "no images": ("--samples a --ref a --num 0", "--num 0: a has 10 images"),
    "seeds of a folder": ("--samples a --ref a --seeds 0-9", "--seeds, --labels and --vae are for samples"),
    "labels of a folder": ("--samples a --ref a --labels balanced", "a is no student"),
    "seeds and number": ("--samples student --num 5 --seeds 0-9", "--num 5 and --seeds 0-9, which are 10, differ"),
    "seeds backwards": ("--samples student --seeds 9-0", "the range 9-0 runs backwards"),
    "no samples of a student": ("--samples student --num 0", "num is 0; at least 1"),
    "negative batch": ("--samples a --ref a --batch-size -1", "batch_size is -1; at least 1"),
    "nothing kept": ("--make-ref a --out r.npz --num-kept 0", "num_kept is 0; at least 1"),
    "no place for a reference": ("--make-ref a --inception i.pth", "--out None: --make-ref writes a file"),
    "a reference of another kind": ("--make-ref a --out r.json --inception i.pth", "--out r.json: --make-ref writes"),
    "a reference of a student": ("--make-ref student --out r.npz --inception i.pth", "student is no student, no .npz"),
}


@pytest.fixture
def workspace(
    tmp_path: Path,
    pictures: Pictures,
    write_pngs: Callable[..., Path],
    save_tiny_student: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """a and b, folders of pictures of two sizes; student; i.pth, which is no weights."""
    write_pngs(tmp_path / "a", pictures(10))
    write_pngs(tmp_path / "b", pictures(10, size=8))
    save_tiny_student(tmp_path / "student", channels=1)
    (tmp_path / "i.pth").write_bytes(b"none")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(workspace: Path, complaint: Callable[..., str], case: str) -> None:
    before = sorted(workspace.rglob("*"))
    typed, words = REFUSALS[case]
    assert words in complaint(*typed.split())
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("--samples a --ref a --inception i.pth --pr-distances fp16", {"metrics": ["fid", "sfid", "is", "pr"]}),
        ("--samples student --num 7 --metrics is --inception i.pth", {"metrics": ["is"], "batch_size": 64}),
        ("--make-ref a --out r.npz --inception i.pth --num-kept 3", {"num_kept": 3, "out": "r.npz"}),
    ],
)
def test_a_dry_run_shows_what_would_be_done(
    workspace: Path, evaluated: Evaluated, typed: str, shown: dict[str, Any]
) -> None:
    before = sorted(workspace.rglob("*"))
    plan = json.loads(evaluated(*typed.split(), "--dry-run"))
    assert plan | shown == plan
    assert plan["weights"]["inception"] == "i.pth"
    assert sorted(workspace.rglob("*")) == before


def test_damaged_pictures_leave_neither_reference_nor_numbers(
    workspace: Path, complaint: Callable[..., str], inception_file: Path
) -> None:
    path = workspace / "a" / "00009.png"
    Image.open(workspace / "a" / "00000.png").resize((16, 16)).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    options = ["--inception", inception_file, "--batch-size", 10]
    assert "00009.png cannot be decoded" in complaint("--make-ref", "a", "--out", "new/r.npz", *options)
    assert "00009.png cannot be decoded" in complaint(
        "--samples", "a", "--metrics", "is", "--json", "new/o.json", *options
    )
    assert not (workspace / "new").exists()


def test_processes_that_cannot_meet_are_told_to_be_started_with_torchrun(
    workspace: Path, complaint: Callable[..., str], inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    line = complaint("--samples", workspace / "a", "--metrics", "is", "--inception", inception_file)
    assert "start it with torchrun" in line
