//! TLS towards clients: rustls with ring, certificate and key from PEM text.

use std::io;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// A certificate that clients are shown.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No PEM text, or none of the right kind.
    #[error("the {what} cannot be read: {cause}; give PEM text")]
    Pem {
        /// `certificate`, `private key` or `certificate authority`.
        what: &'static str,
        /// What is wrong.
        cause: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("certificate and private key do not go together: {0}")]
    Pair(#[from] tokio_rustls::rustls::Error),
    /// A certificate is no authority's.
    #[error("the certificate authority cannot be trusted: {0}")]
    Authority(tokio_rustls::rustls::Error),
}

impl Tls {
    /// From the PEM text of a certificate chain, the server's own first, and of its private key.
    ///
    /// # Errors
    /// If they cannot be read or do not belong together.
    pub fn new(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let broken = |what| move |cause| TlsError::Pem { what, cause };
        let chain = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(broken("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(broken("private key"))?;
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Greets a client.
    pub(crate) async fn accept(&self, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.0.accept(socket).await
    }
}
