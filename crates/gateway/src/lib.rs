//! OpenAI-compatible gateway, emulated replica and load generator.
