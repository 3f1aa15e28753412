"""Between messages and token ids: chat template, tokenizer, incremental detokenising, stop strings."""

from appliance.chat.detokenise import Detokenizer
from appliance.chat.format import ChatFormat
from appliance.chat.stops import StopStrings

__all__ = ["ChatFormat", "Detokenizer", "StopStrings"]
