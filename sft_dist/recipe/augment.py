"""Random changes to training examples: the settings. What they do is in `sft_dist/data/augment/`."""

from typing import Annotated

from pydantic import Field

from sft_dist.recipe.section import Section

Share = Annotated[float, Field(ge=0, le=1)]


class TextAugment(Section):
    """For text classification."""

    probability: Share = Field(0.5, description="Share of examples that are changed.")
    delete: Share = Field(0.0, description="Share of words removed (arXiv 1901.11196).")
    swap: Share = Field(0.0, description="Share of words that are swapped.")
    synonyms: Share = Field(0.0, description="Share of words replaced by a synonym of WordNet (nltk's corpus).")
    back_translation: str | None = Field(
        None, description="`module:function` of an installed package, from a text to a paraphrase of it."
    )


class ImageAugment(Section):
    """For the vision tasks; boxes and masks follow."""

    flip: Share = Field(0.5, description="Share of images flipped horizontally.")
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Minimum share of the area that a random crop keeps."
    )
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="Maximum rotation in degrees.")
    color: Share = Field(0.0, description="Maximum change of brightness, contrast and saturation.")
    blur: Share = Field(0.0, description="Share of images that are blurred.")
    erase: Share = Field(0.0, description="Share of images with a region erased (arXiv 1708.04896).")


class AudioAugment(Section):
    """For the audio tasks."""

    probability: Share = Field(0.5, description="Share of recordings to which each change below is applied.")
    noise_snr: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None, description="White noise at this signal-to-noise ratio in decibels: `[10, 30]`."
    )
    speed: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Speed, which also changes the pitch: `[0.9, 1.1]`."
    )
    gain_db: Annotated[float, Field(ge=0, le=40)] = Field(0.0, description="Maximum change of loudness in decibels.")
    shift: Share = Field(0.0, description="Shift in time by up to this share of the length.")
    time_masks: int = Field(0, ge=0, le=20, description="Time spans masked in the spectrum (arXiv 1904.08779).")
    frequency_masks: int = Field(0, ge=0, le=20, description="Frequency bands masked in the spectrum.")


class Augment(Section):
    text: TextAugment | None = Field(None, description="Text classification: words.")
    image: ImageAugment | None = Field(None, description="Vision: images, with their boxes and masks.")
    audio: AudioAugment | None = Field(None, description="Audio: the sound and its spectrum.")
