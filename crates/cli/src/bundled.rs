//! Data that several commands bring with them: each file is in the binary once.

/// An hour of an Azure chat service, CSV packed by gzip.
pub(crate) static CONVERSATION: &[u8] = include_bytes!("../../../examples/data/azure2023_conv.csv.gz");
/// MMLU-Pro with the scores of two Llamas, JSON lines packed by gzip.
pub(crate) static KNOWLEDGE: &[u8] = include_bytes!("../../../examples/data/mmlu_pro_llama.jsonl.gz");
