"""ard teacher import: the folder it writes serves the other commands, and is written whole, once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ard.core.config import to_plain
from ard.core.errors import InputError
from ard.diffusion.process import Diffusion
from ard.networks.transformer import Transformer, TransformerConfig, initialise
from ard.teacher.teacher import load_teacher, load_teacher_card
from ard.trajectories.manifest import load_manifest

Made = Callable[..., str]
CPU = torch.device("cpu")
NETWORK = TransformerConfig(
    width=64, depth=2, num_heads=2, patch_size=4, latent_size=8, channels=4, num_classes=10, learn_sigma=True
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random DiT under the names of DiT's code."""
    network = initialise(Transformer(NETWORK), torch.Generator().manual_seed(0))
    weights: dict[str, Tensor] = {"pos_embed": network.pos_embed.unsqueeze(0)}
    for name, tensor in network.state_dict().items():
        weights[name.replace("x_embedder.", "x_embedder.proj.")] = tensor + 0.02
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].view(64, 4, 4, 4)
    torch.save(weights, tmp_path / "DiT-tiny.pt")
    return tmp_path / "DiT-tiny.pt"


@pytest.fixture
def teacher(checkpoint: Path, tmp_path: Path, made: Made) -> Path:
    """The imported teacher."""
    made("teacher", "import", checkpoint, "--num-heads", 2, "--out", tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def store(teacher: Path, tmp_path: Path, made: Made) -> Path:
    options = ["--num", 12, "--num-teacher-steps", 4, "--num-steps", 2, "--workers", 1, "--device", "cpu"]
    made("collect", "--teacher", teacher, "--out", tmp_path / "store", *options)
    return tmp_path / "store"


def test_an_imported_teacher_serves_the_other_commands(
    store: Path, teacher: Path, tmp_path: Path, made: Made, autoencoder_folder: Path
) -> None:
    assert load_manifest(store)[0].ode.guidance.cfg_channels == 3
    training = ["--iterations", 2, "--batch-size", 4, "--warmup", 0, "--device", "cpu"]
    made("distill", "--trajectories", store, "--out", tmp_path / "student", *training)
    drawing = ["--seeds", "0-3", "--vae", autoencoder_folder, "--device", "cpu"]
    made("sample", "--student", tmp_path / "student", "--out", tmp_path / "grid.png", *drawing)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    counted = json.loads(made("flops", "--teacher", teacher, "--num-steps", 2, "--json"))
    assert counted["network"] == to_plain(NETWORK)


def test_the_folder_says_what_was_found(checkpoint: Path, tmp_path: Path, made: Made) -> None:
    words = ["teacher", "import", checkpoint, "--num-heads", 2, "--out", tmp_path / "teacher"]
    found = json.loads(made(*words, "--dry-run"))["teacher"]
    assert not (tmp_path / "teacher").exists()
    told = made(*words)
    assert "dit from DiT-tiny.pt" in told
    assert "4 x 8 x 8, 3 channels guided" in told
    assert "classes: 10 and a row for no class; if it was trained without label dropout: --num-classes 11" in told
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    assert config.keys() == {"schema", "kind", "sha256", "network", "diffusion", "imported"}
    assert {name: config[name] for name in found} == found
    assert (
        config["imported"]["scaling_factor"] is None
    )  # Of a network that nobody published, its autoencoder may be any.


LETTERS = "abcdefghij"


class TestClassNames:
    """Names come along, and those of a teacher that is there may be given later."""

    @pytest.fixture
    def named(self, tmp_path: Path) -> Path:
        """Names in every form that is read, for ten classes."""
        for letter in LETTERS:
            (tmp_path / "data" / letter).mkdir(parents=True)
        for number in range(1, 11):
            (tmp_path / "numbered" / str(number)).mkdir(parents=True)
        by_label = {str(label): letter for label, letter in enumerate(LETTERS)}
        (tmp_path / "map.json").write_text(json.dumps(by_label))
        (tmp_path / "config").mkdir()
        (tmp_path / "config/config.json").write_text(json.dumps({"id2label": by_label}))
        (tmp_path / "list.json").write_text(json.dumps(list(LETTERS)))
        (tmp_path / "names.txt").write_text("\n".join(LETTERS) + "\n", encoding="utf-8-sig")
        return tmp_path

    @pytest.mark.parametrize("name", ["data", "map.json", "config", "list.json", "names.txt"])
    def test_are_read_in_every_form(self, name: str, named: Path, teacher: Path, checkpoint: Path, made: Made) -> None:
        words = ["teacher", "import", checkpoint, "--num-heads", 2, "--out", teacher]
        assert "classes: 0 a, 1 b" in made(*words, "--class-names", named / name)
        card = load_teacher_card(teacher)
        assert card.imported is not None
        assert card.imported.class_names == tuple(LETTERS)
        assert "is there already" in made(*words, "--class-names", named / name)
        assert "is there already" in made(*words)

    def test_folders_that_are_numbers_sort_as_numbers(self, named: Path, checkpoint: Path, made: Made) -> None:
        words = ["teacher", "import", checkpoint, "--num-heads", 2, "--out", named / "new"]
        said = made(*words, "--class-names", named / "numbered")
        assert "classes: 0 1, 1 2, 2 3" in said
        assert "9 10" in said

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b'{"0": "a"}', "has 1 names of classes, the teacher 10"),
            (json.dumps({str(label): "x" for label in range(1, 11)}).encode(), "has 9 names"),
            (b"3", "a map from labels to names"),
            (b"{", "is damaged"),
        ],
    )
    def test_that_do_not_fit_are_refused(
        self, content: bytes, told: str, checkpoint: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        (tmp_path / "x.json").write_bytes(content)
        words = ["teacher", "import", checkpoint, "--num-heads", 2, "--out", tmp_path / "new"]
        assert told in refused(*words, "--class-names", tmp_path / "x.json")

    def test_in_a_file_of_another_kind_are_refused(
        self, checkpoint: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        words = ["teacher", "import", checkpoint, "--num-heads", 2, "--out", tmp_path / "new"]
        assert "a .json, a .txt" in refused(*words, "--class-names", checkpoint)


def test_the_same_command_again_says_that_it_is_there(
    checkpoint: Path, teacher: Path, made: Made, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    before = contents(teacher)
    assert "is there already" in made("teacher", "import", checkpoint, "--num-heads", 2, "--out", teacher)
    assert contents(teacher) == before


def test_a_folder_with_something_else_is_left_alone(
    checkpoint: Path, teacher: Path, toys: Path, refused: Callable[..., str]
) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({**weights, "final_layer.linear.bias": weights["final_layer.linear.bias"] + 1}, checkpoint)
    assert "other weights" in refused("teacher", "import", checkpoint, "--num-heads", 2, "--out", teacher)
    assert "num_heads 2 → 4" in refused("teacher", "import", checkpoint, "--num-heads", 4, "--out", teacher)
    assert "holds another teacher" in refused(
        "teacher", "import", checkpoint, "--num-heads", 2, "--out", toys / "teacher"
    )


def test_a_teacher_without_a_row_for_no_class_serves_them_too_without_guidance(
    checkpoint: Path, tmp_path: Path, made: Made, complaint: Made, autoencoder_folder: Path
) -> None:
    teacher, store, student = (tmp_path / name for name in ("teacher", "store", "student"))
    made("teacher", "import", checkpoint, "--num-heads", 2, "--num-classes", 11, "--out", teacher)
    collecting = ["collect", "--teacher", teacher, "--num", 12, "--num-teacher-steps", 4, "--num-steps", 2]
    collecting += ["--workers", 1, "--device", "cpu", "--out", store]
    assert "give --cfg-scale 1" in complaint(*collecting)
    made(*collecting, "--cfg-scale", 1)
    made("distill", "--trajectories", store, "--out", student, "--iterations", 2, "--batch-size", 4, "--device", "cpu")
    picture = ["--labels", "10", "--seeds", "0-1", "--vae", autoencoder_folder, "--device", "cpu"]
    made("sample", "--student", student, "--out", tmp_path / "grid.png", *picture)
    made("export", "--student", student, "--vae", autoencoder_folder, "--out", tmp_path / "exported")


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.slow
def test_a_killed_import_leaves_no_teacher_and_the_next_one_makes_it(
    checkpoint: Path, tmp_path: Path, killed: Callable[..., None], made: Made, complaint: Made, call: int
) -> None:
    out = tmp_path / "new"
    words = ["teacher", "import", checkpoint, "--num-heads", 2, "--out", out]
    killed([f"os.fsync:{call}"], *words)
    assert "is no teacher" in complaint("collect", "--teacher", out, "--out", tmp_path / "store")
    made(*words)
    assert load_teacher(out, CPU).network.config == NETWORK
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}


def test_a_hub_id_gets_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "teacher"]
    line = refused("teacher", "import", "hub:facebook/DiT-XL-2-256", *out)
    assert "hf download facebook/DiT-XL-2-256" in line
    assert "write hub:facebook/DiT-XL-2-256" in refused("teacher", "import", "facebook/DiT-XL-2-256", *out)


def test_a_mistyped_path_is_no_repository(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("teacher", "import", "checkpoints/0400000.pt", "--out", tmp_path / "teacher")
    assert "checkpoints/0400000.pt is no file or folder here" in line
    assert "hub:checkpoints" not in line
    assert "hf download" not in line


def test_what_needs_the_data_says_that_an_imported_teacher_has_none(
    store: Path, tmp_path: Path, made: Made, complaint: Made
) -> None:
    training = ["--iterations", 2, "--batch-size", 4, "--warmup", 0, "--device", "cpu"]
    made("distill", "--trajectories", store, "--out", tmp_path / "student", *training)
    measuring = ["evaluate", "--student", tmp_path / "student", "--num", 100, "--device", "cpu"]
    assert "--features classifier needs images" in complaint(*measuring, "--features", "classifier")
    adversarial = ["--adversarial", "--adversarial-warmup", 1, *training]
    line = complaint("distill", "--trajectories", store, "--out", tmp_path / "gan", *adversarial)
    assert "an imported one has none; use --real teacher" in line


def test_a_card_tells_of_a_training_or_of_an_import(toys: Path, teacher: Path) -> None:
    trained, imported = load_teacher_card(toys / "teacher"), load_teacher_card(teacher)
    with pytest.raises(InputError, match="an imported teacher has no data, iterations, seed, seconds"):
        replace(trained, imported=imported.imported)
    with pytest.raises(InputError, match="a teacher that was not imported has its data, iterations, seed, seconds"):
        replace(imported, imported=None)


def test_what_came_later_is_left_out_at_its_default_so_that_fingerprints_stay(toys: Path) -> None:
    assert to_plain(Diffusion()).keys() == {"kind", "num_train_steps", "beta_start", "beta_end"}
    assert not to_plain(NETWORK).keys() & {"frequency_shift", "mlp_norm_eps"}
    card = load_teacher_card(toys / "teacher")
    assert (card.data, card.iterations, card.imported) == ("digits", 20, None)
