"""ARDPipeline: a student as a pipeline of diffusers, which is also the format of the folders of `ard export`.

Importable only where diffusers is installed. The names and the place of both classes are in every exported folder.
"""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from numpy import float32
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ard.core.config import from_plain, to_plain
from ard.core.errors import InputError
from ard.core.extras import importing
from ard.core.types import Labels, Latents, States
from ard.images.pictures import to_pictures, to_pixels
from ard.networks.autoencoder import PICTURE_CHANNELS, LatentScale, decode_latents
from ard.networks.condition import Condition, Prompts, to_device
from ard.networks.transformer import Backbone
from ard.reporting.model_card import CARD, SHEET, About, model_card
from ard.student.decoding import require_scale
from ard.student.folder import StudentCard, build_student
from ard.student.history import KVCache
from ard.student.pipeline_inputs import (
    Given,
    read_embeddings,
    read_labels,
    read_noise,
    read_texts,
    read_whole,
    require_own,
)
from ard.student.student import Student
from ard.text.encoded import encode_now
from ard.text.encoder import encoding

with importing("diffusers", "pipeline"):
    from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

# diffusers refuses a pipeline on the hub with parts from modules that it does not know.
LOADABLE_CLASSES[__name__] = {"ARDStudentModel": ["save_pretrained", "from_pretrained"]}

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

OnStepEnd: TypeAlias = Callable[["ARDPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
Images: TypeAlias = list[Image.Image] | NDArray[float32] | Tensor


class ARDStudentModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not type-checked
    """A student with its card, as a model that diffusers saves, loads, moves, casts and compiles."""

    _repeated_blocks: ClassVar = ["Block", "TextBlock"]  # What compile_repeated_blocks compiles.
    _no_split_modules: ClassVar = ["Block", "TextBlock"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, card: dict[str, Any]) -> None:
        """`card` is a StudentCard in its plain form."""
        super().__init__()
        self.card = from_plain(StudentCard, card, where="the student's config.json")
        self.student = build_student(self.card).requires_grad_(requires_grad=False)
        # from_pretrained(dtype=...) makes it under that default; what no file holds, the position table, follows.
        nn.Module.to(self, torch.get_default_dtype())

    @property
    def network(self) -> Backbone:
        """The network."""
        return self.student.network

    def make_cache(self, noise: Latents) -> KVCache:
        """The cache of one call that starts from `noise`."""
        return self.student.make_cache(noise)

    def forward(self, states: States, condition: Condition, step: int, cache: KVCache) -> States:
        """The states after `step`; see Student.

        InputError where weights of few bits are cast to another precision than the rest was loaded in.
        """
        if self.dtype != (own := self.student.step_embedding.dtype):
            raise InputError(f"the layers compute in {self.dtype}, all else in {own}; load it with dtype={self.dtype}")
        next_states: States = self.student(states, condition, step=step, cache=cache)
        return next_states

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ARDStudentModel":
        """Moves and casts everything but the student's times, which would be others in bfloat16, and are only moved."""
        super()._apply(fn, recurse)
        self.student.tau = torch.tensor(self.card.tau, dtype=torch.float32, device=self.student.tau.device)
        return self


def student_model(student: Student, card: StudentCard) -> ARDStudentModel:
    """The student as a model of diffusers."""
    model = ARDStudentModel(card=to_plain(card)).eval()
    model.student.load_state_dict(student.state_dict())
    return model


class ARDPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not type-checked
    """Draws pictures with a student, as other pipelines of diffusers do.

    A call keeps its key-value cache and all its state to itself, so that threads can share a pipeline (one that
    offloads its models cannot be shared: it moves them). The states stay in float32 whatever the weights' precision.
    """

    model_cpu_offload_seq = "text_encoder->student->vae"
    _optional_components: ClassVar = ["text_encoder", "tokenizer", "vae"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        student: ARDStudentModel,
        vae: AutoencoderKL | None = None,
        id2label: Mapping[str, str] | None = None,
        text_encoder: nn.Module | None = None,
        tokenizer: object | None = None,
        max_tokens: int | None = None,
        text_precision: str = "float32",
    ) -> None:
        """`vae` decodes the latents of students that do not make pictures; `id2label` has names by label.

        For students that read text: a T5 and its tokenizer, how many tokens of a prompt are read, and the precision in
        which the student's own prompts were encoded, float32 or bfloat16.
        """
        super().__init__()
        _check_components(student, vae)
        _check_text(student, text_encoder, tokenizer, max_tokens)
        if text_encoder and text_precision == "bfloat16":
            text_encoder.to(torch.bfloat16)  # Saved so; how it is loaded depends on the version of transformers.
        for part in filter(None, (student, vae, text_encoder)):
            part.requires_grad_(requires_grad=False)  # Kernels are chosen by it on some CPUs, and round otherwise.
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer, student=student, vae=vae)
        self.register_to_config(id2label=dict(id2label or {}))
        if text_encoder:
            self.register_to_config(max_tokens=max_tokens, text_precision=text_precision)

    @property
    def labels(self) -> dict[str, int]:
        """The label of every class name; a class may have several, with commas between."""
        names = (
            (name.strip(), int(label))
            for label, all_of_it in self.config.id2label.items()
            for name in all_of_it.split(",")
        )
        return {name: label for name, label in names if name}

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 the arguments are those of diffusers' pipelines
        self,
        class_labels: Given = None,
        prompt: Given = None,
        *,
        num_images_per_prompt: Given = 1,
        num_inference_steps: Given = None,
        generator: Given = None,
        latents: Given = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt_embeds: Given = None,
        prompt_attention_mask: Given = None,
        negative_prompt: Given = None,
        guidance_scale: Given = None,
        height: Given = None,
        width: Given = None,
    ) -> ImagePipelineOutput | tuple[Images]:
        """The pictures of `class_labels`, numbers or names, or of `prompt`, `num_images_per_prompt` of each.

        Several labels are a list, an array or a tensor. Prompts are texts, or were encoded before:
        EncodedText(folder).condition(numbers), or `prompt_embeds` and `prompt_attention_mask`. A picture is its label
        or its prompt and its noise, which comes from `latents`, a tensor or an array, or from `generator`: a list has a
        torch.Generator per picture, and one on the CPU with the manual seed s gives the picture of seed s of
        `ard sample`. `output_type` is pil, np, pt or latent.

        `num_inference_steps`, `height` and `width` may be the student's own only; it has learned the teacher's guidance
        with the empty prompt, so that `guidance_scale` may be that one only and `negative_prompt` empty.
        `callback_on_step_end(pipeline, step, time, {"latents": x})` may return other latents, and ends the call after
        the step when it sets `pipeline._interrupt`.
        """
        repeats = read_whole(num_images_per_prompt, "num_images_per_prompt", at_least=1)
        self._require_own(num_inference_steps, height, width, guidance_scale, negative_prompt)
        self._check_inputs(output_type, callback_on_step_end_tensor_inputs)
        given = self._condition(class_labels, prompt, prompt_embeds, prompt_attention_mask)
        condition = given[torch.arange(len(given)).repeat_interleave(repeats)]
        network, device = self.student.card.network, self._execution_device
        noise = read_noise(generator, latents, count=len(condition), network=network, device=device)
        states = self._last_states(noise, to_device(condition, noise.device), callback_on_step_end)
        images = self._images(states, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _require_own(self, num_steps: Given, height: Given, width: Given, scale: Given, negative: Given) -> None:
        """InputError for what was decided when the student was distilled."""
        card = self.student.card
        side = card.network.latent_size * self._pixels_per_latent
        steps, learned = card.student.num_steps, card.ode.guidance.cfg_scale
        guided = f"guidance is learned, with the teacher's scale {learned:g} and the empty prompt: leave it out"
        size = f"this student makes pictures of {side} x {side}: leave it out"
        require_own(
            {
                "num_inference_steps": (num_steps, steps, f"this student was distilled for {steps} steps only"),
                "height": (height, side, size),
                "width": (width, side, size),
                "guidance_scale": (scale, learned, guided),
                "negative_prompt": (negative, "", guided),
            }
        )

    @property
    def _pixels_per_latent(self) -> int:
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _check_inputs(self, output_type: str, inputs: Sequence[str]) -> None:
        """InputError for what this pipeline cannot give."""
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type is {output_type!r}; allowed: {', '.join(OUTPUT_TYPES)}")
        channels = self.student.card.network.channels
        is_of_latents = self.student.card.latents is not None or channels not in PICTURE_CHANNELS
        if self.vae is None and is_of_latents and output_type != "latent":
            raise InputError(
                f"this student makes latents of {channels} channels and the pipeline has no vae to decode them; give "
                'one with from_pretrained(..., vae=...), or ask for output_type="latent"'
            )
        if unknown := set(inputs) - set(self._callback_tensor_inputs):
            raise InputError(f"callback_on_step_end_tensor_inputs names {', '.join(sorted(unknown))}; allowed: latents")

    def _condition(self, class_labels: Given, prompt: Given, embeddings: Given, mask: Given) -> Labels | Prompts:
        """What the network is conditioned on, a row for each label or prompt."""
        network = self.student.card.network
        if network.text is None:
            if prompt is not None or embeddings is not None:
                raise InputError("this student knows classes, no text: give class_labels in place of prompt")
            return read_labels(class_labels, names=self.labels, num_classes=network.num_classes)
        if class_labels is not None:
            raise InputError("this student reads text, it has no classes: give prompt in place of class_labels")
        if embeddings is not None:
            if prompt is not None:
                raise InputError("prompt and prompt_embeds are two prompts; give one of them")
            return read_embeddings(embeddings, mask, width=network.text.width)
        found = prompt if isinstance(prompt, Prompts) else self._encoded(prompt)
        if (width := found.tokens.shape[2]) != (wanted := network.text.width):
            raise InputError(f"the prompts have text of width {width}, and this student reads {wanted}")
        return found

    def _encoded(self, prompt: Given) -> Prompts:
        """Texts as `ard text encode` makes of them."""
        texts = read_texts([] if prompt is None else prompt)
        if self.text_encoder is None:
            raise InputError(
                "this pipeline has no text encoder: give one to ard export with --text-encoder, or as prompt what ard "
                "text encode made, EncodedText(folder).condition(numbers)"
            )
        length, device = self.config.max_tokens, self._execution_device
        encode = encoding(self.text_encoder, self.tokenizer, max_tokens=length, device=device)
        return encode_now(texts, encode, max_tokens=length)

    def _last_states(self, noise: Latents, condition: Condition, on_step_end: OnStepEnd | None) -> Latents:
        """The states after the last step, or after the one that was interrupted."""
        _CALL.interrupted = False
        num_steps, cache, x = self.student.card.student.num_steps, self.student.make_cache(noise), noise
        with self.progress_bar(total=num_steps) as bar:
            for step in range(num_steps):
                x = self.student(x.unsqueeze(1), condition, step, cache).squeeze(1)
                if on_step_end:
                    time = torch.tensor(self.student.card.tau[step])
                    x = (on_step_end(self, step, time, {"latents": x}) or {}).get("latents", x)
                bar.update()
                if self._interrupt:
                    break
        return x

    def _images(self, states: Latents, output_type: str) -> Images:
        """The states as `output_type` says; PIL's are those of `ard sample`, the others are in [0, 1]."""
        if output_type == "latent":
            return states
        images = states if self.vae is None else decode_latents(self.vae, states)
        if output_type == "pil":
            return to_pictures(to_pixels(images).cpu())
        scaled = (images.float() / 2 + 0.5).clamp(0, 1)
        return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).cpu().numpy()

    @property
    def _interrupt(self) -> bool:
        """Whether the call that this thread is in ends after its step; a callback sets it."""
        return _CALL.interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        _CALL.interrupted = value

    def enable_vae_tiling(self) -> None:
        """Decode in tiles whatever the size; images of more than 1024 pixels along a side always are."""
        self._require_vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode in one piece, except for images of more than 1024 pixels along a side."""
        self._require_vae().disable_tiling()

    def _require_vae(self) -> Any:
        if self.vae is None:
            raise InputError("this pipeline has no vae: its student makes pictures, and tiles have no meaning")
        return self.vae

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False) -> None:
        """Write model_index.json, as save_pretrained does last, and the model card where there is none yet."""
        super().save_config(save_directory, push_to_hub=push_to_hub)
        if not (Path(save_directory) / CARD).exists():
            self._write_card(Path(save_directory))

    def _upload_folder(
        self,
        working_dir: str | Path,
        repo_id: str,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> Any:
        """Upload with the model card in place of diffusers' empty one, which push_to_hub has just written over it."""
        self._write_card(Path(working_dir))
        return super()._upload_folder(working_dir, repo_id, token, commit_message, create_pr, subfolder)

    def _write_card(self, folder: Path) -> None:
        """The card and the samples of the folder that the pipeline was loaded from, or a card from the student's."""
        source = Path(self.name_or_path or "")
        if not (self.name_or_path and (source / CARD).is_file()):
            about = About(text_encoder=type(self.text_encoder).__name__ if self.text_encoder else "")
            (folder / CARD).write_text(model_card(self.student.card, about))
            return
        for path in (source / CARD, source / SHEET):
            if path.is_file() and path.resolve() != (folder / path.name).resolve():
                shutil.copyfile(path, folder / path.name)


class _Call(threading.local):
    """What a call keeps outside of its stack: each thread has its own."""

    interrupted = False


_CALL = _Call()


def _check_components(student: Any, vae: Any) -> None:
    """InputError for models that do not fit this pipeline or each other."""
    if not isinstance(student, ARDStudentModel):
        raise InputError(f"the student is a {type(student).__name__}; ARDPipeline takes an ARDStudentModel")
    if lacking := [name for name, parameter in student.named_parameters() if parameter.is_meta]:
        raise InputError(f"the student's weights lack {', '.join(lacking[:5])}; its folder is damaged, export it again")
    if vae is None:
        return
    if not isinstance(vae, AutoencoderKL):
        raise InputError(f"the vae is a {type(vae).__name__}; ARDPipeline takes an AutoencoderKL")
    if vae.config.latent_channels != (channels := student.card.network.channels):
        raise InputError(
            f"the vae decodes latents of {vae.config.latent_channels} channels, and the student makes {channels}"
        )
    scale = LatentScale(scaling_factor=vae.config.scaling_factor, shift_factor=vae.config.shift_factor or 0.0)
    require_scale(scale, student.card.latents, of="the vae scales its latents", how="decode the student's")


def _check_text(student: ARDStudentModel, text_encoder: Any, tokenizer: Any, max_tokens: int | None) -> None:
    """InputError for a text encoder that this student cannot read, or that is not whole."""
    if text_encoder is None:
        return
    text = student.card.network.text
    if text is None:
        raise InputError("this student knows classes, no text: leave out the text encoder")
    if tokenizer is None or max_tokens is None:
        raise InputError("a text encoder needs its tokenizer and max_tokens, which ard export writes")
    if text_encoder.config.d_model != text.width:
        raise InputError(
            f"the text encoder makes text of width {text_encoder.config.d_model}, and the student reads {text.width}"
        )
