"""Template -> segments -> prompts, as token ids or as chat messages."""

from vllm_relational.prompts.build import PromptBuilder
from vllm_relational.prompts.template import Question, parse_template
from vllm_relational.prompts.tokenizer import FourByteEstimate, ModelTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "FourByteEstimate",
    "ModelTokenizer",
    "PromptBuilder",
    "Question",
    "Tokenizer",
    "load_tokenizer",
    "parse_template",
]
