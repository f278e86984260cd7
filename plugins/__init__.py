"""The built-in components, found through the same entry point as anyone's: a new one adds its import here."""

# ruff: noqa: F401

from __future__ import annotations

from ..core import component
from .attention.big_bird import BigBirdAttention
from .attention.conv import ConvAttention
from .attention.convolution import ConvolutionAttention
from .attention.differential import DifferentialAttention
from .attention.dilated import DilatedAttention
from .attention.full import FullAttention
from .attention.gated_delta import GatedDeltaAttention
from .attention.gated_linear import GatedLinearAttention
from .attention.gru import GruAttention
from .attention.latent import LatentAttention
from .attention.linear import LinearAttention
from .attention.linformer import LinformerAttention
from .attention.local import LocalAttention
from .attention.local_p import LocalPAttention
from .attention.longformer import LongformerAttention
from .attention.lstm import LstmAttention
from .attention.native_sparse import NativeSparseAttention
from .attention.performer import PerformerAttention
from .attention.retention import RetentionAttention
from .attention.rg_lru import RgLruAttention
from .attention.rnn import RnnAttention
from .attention.rwkv import RwkvAttention
from .attention.sink import SinkAttention
from .attention.sparse import SparseAttention
from .attention.state_space import StateSpaceAttention
from .data.answers import AnswersData
from .data.choices import ChoicesData
from .data.labelled import LabelledData
from .data.pairs import PairsData
from .data.text import TextData
from .embedding.patch_2d import Patch2dEmbedding
from .embedding.token import TokenEmbedding
from .feedforward.experts import ExpertsFeedForward
from .feedforward.glu import GluFeedForward
from .feedforward.mlp import MlpFeedForward
from .feedforward.rwkv import RwkvFeedForward
from .head.classifier import ClassifierHead
from .head.lm import LmHead
from .head.pooled import PooledHead
from .norm.layer import LayerNorm
from .norm.rms import RmsNorm
from .objective.causal_lm import CausalLmObjective
from .objective.classification import ClassificationObjective
from .objective.gap_sentences import GapSentencesObjective
from .objective.generated_token import GeneratedTokenObjective
from .objective.infilling import InfillingObjective
from .objective.masked_lm import MaskedLmObjective
from .objective.multiple_choice import MultipleChoiceObjective
from .objective.next_sentence import NextSentenceObjective
from .objective.permuted_lm import PermutedLmObjective
from .objective.replaced_token import ReplacedTokenObjective
from .objective.seq2seq_classification import Seq2seqClassificationObjective
from .objective.seq2seq_lm import Seq2seqLmObjective
from .objective.span_corruption import SpanCorruptionObjective
from .objective.span_extraction import SpanExtractionObjective
from .objective.sum import SumObjective
from .position.alibi import AlibiPosition
from .position.disentangled import DisentangledPosition
from .position.learned import LearnedPosition
from .position.rope import RopePosition
from .position.sinusoidal import SinusoidalPosition
from .position.t5_bias import T5BiasPosition
from .position.transformer_xl import TransformerXlPosition
from .topology.decoder import DecoderTopology
from .topology.encoder import EncoderTopology
from .topology.encoder_decoder import EncoderDecoderTopology
from .topology.encoder_with_generator import EncoderWithGeneratorTopology

TRANSOM_API = 1


def transom_components() -> tuple[type[component.Component], ...]:
    """Return every component that is imported above."""
    found = (item for item in globals().values() if isinstance(item, type))
    return tuple(item for item in found if issubclass(item, component.Component))
