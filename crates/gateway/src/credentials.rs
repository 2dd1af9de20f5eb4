//! Towards engines: whose certificates are trusted, and which API key goes to whom.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hyper::header::HeaderValue;
use hyper::http::uri::Authority;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::tls::TlsError;

/// Which certificates of engines are trusted.
#[derive(Clone)]
pub struct UpstreamTls(pub(crate) TlsConnector);

impl UpstreamTls {
    /// Those of the authorities that Mozilla trusts, and of those in the PEM text `authorities`.
    ///
    /// # Errors
    /// If the text holds no certificate, or one that is none.
    pub fn new(authorities: &[u8]) -> Result<Self, TlsError> {
        let broken = |cause| TlsError::Pem { what: "certificate authority", cause };
        let mut roots = mozillas();
        let known = roots.len();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            roots.add(certificate.map_err(broken)?).map_err(TlsError::Authority)?;
        }
        if roots.len() == known {
            return Err(broken(rustls_pki_types::pem::Error::NoItemsFound));
        }
        Ok(Self::trusting(roots))
    }

    fn trusting(roots: RootCertStore) -> Self {
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self(TlsConnector::from(Arc::new(config)))
    }
}

fn mozillas() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self::trusting(mozillas())
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UpstreamTls")
    }
}

/// API keys of engines, by host. Never printed.
#[derive(Debug, Clone, Default)]
pub struct UpstreamKeys(BTreeMap<String, HeaderValue>);

/// Why a file of engines' keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{file}` line {line}: {what}; write `HOST KEY`, such as `api.example.com sk-…`")]
pub struct UpstreamKeysError {
    file: String,
    line: usize,
    what: &'static str,
}

impl UpstreamKeys {
    /// Lines `HOST KEY` or `HOST:PORT KEY`; `#` begins a comment.
    ///
    /// # Errors
    /// If a line is none of these, or names a host a second time.
    pub fn parse(file: &str, text: &str) -> Result<Self, UpstreamKeysError> {
        let mut keys = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = |what| UpstreamKeysError { file: file.into(), line: number, what };
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let (host, key) = match *words {
                [] => continue,
                [host, key] => (host, key),
                _ => return Err(wrong("there are not two words")),
            };
            let mut bearer = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| wrong("the key has characters that no key has"))?;
            bearer.set_sensitive(true);
            if keys.insert(host.to_lowercase(), bearer).is_some() {
                return Err(wrong("the host has a key already"));
            }
        }
        Ok(Self(keys))
    }

    /// What an engine is to be shown that is called by this name.
    pub(crate) fn of(&self, name: &Authority) -> Option<&HeaderValue> {
        let of = |name: &str| self.0.get(&name.to_lowercase());
        of(name.as_str()).or_else(|| of(name.host()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_to_its_host_only_and_is_not_printed() {
        let text = "# ours\napi.example.com sk-one # hosted\nvllm:8000 sk-two\n[::1]:8000 sk-six\n\n";
        let keys = UpstreamKeys::parse("keys", text).unwrap();
        let of = |name: &str| keys.of(&name.parse().unwrap()).map(|key| key.to_str().unwrap().to_owned());
        assert_eq!(of("API.example.com").as_deref(), Some("Bearer sk-one"));
        assert_eq!(of("api.example.com:443").as_deref(), Some("Bearer sk-one"));
        assert_eq!(of("vllm:8000").as_deref(), Some("Bearer sk-two"));
        assert_eq!(of("[::1]:8000").as_deref(), Some("Bearer sk-six"));
        for other in ["vllm:8001", "vllm", "example.com", "evil-api.example.com", "[::1]:80"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert!(!format!("{keys:?}").contains("sk-"), "{keys:?}");
    }

    #[test]
    fn a_line_that_is_none_is_told_without_the_key() {
        for text in ["host", "host sk-1 more", "host sk-1\nhost sk-2", "host sk-\u{1}"] {
            let error = UpstreamKeys::parse("keys", text).unwrap_err().to_string();
            assert!(error.starts_with("`keys` line ") && !error.contains("sk-1"), "{error}");
        }
    }

    #[test]
    fn authorities_are_pem_text() {
        assert!(UpstreamTls::new(b"").is_err() && UpstreamTls::new(b"no certificate").is_err());
        assert!(UpstreamTls::new(include_bytes!("../tests/it/data/cert.pem")).is_ok());
    }
}
