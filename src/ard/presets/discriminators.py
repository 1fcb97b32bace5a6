"""Discriminators by name, for the loss R + D: ours, the authors', and R3GAN's loss."""

from ard.methods.adversarial import AdversarialConfig, Penalty
from ard.methods.losses import AdversarialForm
from ard.networks.discriminator import DiscriminatorConfig, HeadNorm, TokenMixing

DISCRIMINATORS: dict[str, AdversarialConfig] = {
    # Ours: five heads, each latent judged by itself.
    "heads": AdversarialConfig(),
    # As the authors' re-implementation has it: every block, local batch norm, no penalty, clean inputs. Its warm-up of
    # 3,000 updates and its weight of 10 are for ImageNet.
    "authors": AdversarialConfig(
        heads=DiscriminatorConfig(head_depths=(), head_norm=HeadNorm.LOCAL_BATCH, head_mixing=TokenMixing.RASTER),
        penalty=Penalty.NONE,
        renoised=0.0,
        adversarial_weight=10.0,
        adversarial_cap=1e4,
        adversarial_warmup=3000,
    ),
    # R3GAN's loss (Huang et al., 2024) on the heads.
    "r3": AdversarialConfig(adversarial_form=AdversarialForm.RELATIVISTIC, penalty=Penalty.R1_R2),
}
