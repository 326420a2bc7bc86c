//! TLS for sinks: certificates are read when the sink is made, before the sandbox closes.

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::config::Tls;

/// A client's side of TLS 1.2 and 1.3, which speaks one of `protocols`, where there are any.
///
/// # Errors
/// When a certificate or key is not PEM, a key is not that of the certificate, or the host trusts nobody.
pub(super) fn client(tls: &Tls, protocols: &[&str]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(pem) => {
            for certificate in certificates(pem).context("tls.ca")? {
                roots.add(certificate).context("tls.ca")?;
            }
        }
        // The file may be named and not read yet, where a configuration is only checked.
        None if tls.ca_file.is_some() => {}
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                bail!(
                    "this host trusts no authority\nhint: install ca-certificates, or name one with tls.ca_file"
                );
            }
        }
    }
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
    let mut config = match (&tls.cert, &tls.key) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(
                certificates(certificate).context("tls.cert")?,
                PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .context("tls.key is not a key in PEM")?,
            )
            .context("tls.cert and tls.key")?,
        (None, None) => builder.with_no_client_auth(),
        _ => bail!("tls needs both a certificate and its key, or neither"),
    };
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Ok(Arc::new(config))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("it is not PEM")?;
    if found.is_empty() {
        bail!("there is no certificate in it");
    }
    Ok(found)
}

/// For connections without TLS: trusts nobody.
pub(super) fn nobody() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of both versions");
    Arc::new(
        builder
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth(),
    )
}

/// Where a gRPC service is, and how it is connected to.
pub(super) struct Service {
    endpoint: Endpoint,
    host: String,
    port: u16,
    secure: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Service {
    /// # Errors
    /// As [`client`].
    pub(super) fn new(
        url: &reqwest::Url,
        tls: &Tls,
        connect: Duration,
        request: Duration,
    ) -> Result<Self> {
        let host = url.host_str().context("an address without a host")?;
        let port = url
            .port_or_known_default()
            .context("an address without a port")?;
        let secure = match url.scheme() {
            "https" => {
                let name = ServerName::try_from(bare(host)).context("the server's name")?;
                Some((client(tls, &["h2"])?, name))
            }
            _ => None,
        };
        let endpoint = Endpoint::from_shared(format!("{}://{host}:{port}", url.scheme()))?
            .connect_timeout(connect)
            .timeout(request)
            .user_agent(concat!("agentwatch/", env!("CARGO_PKG_VERSION")))?;
        Ok(Self {
            endpoint,
            host: bare(host),
            port,
            secure,
        })
    }

    /// A channel, which connects when it is first used, and again after a failure. To be made on the runtime that uses it.
    pub(super) fn channel(&self) -> Channel {
        let (host, port, secure) = (self.host.clone(), self.port, self.secure.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (host, secure) = (host.clone(), secure.clone());
            async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                let stream: Box<dyn Stream> = match secure {
                    Some((config, name)) => {
                        Box::new(TlsConnector::from(config).connect(name, stream).await?)
                    }
                    None => Box::new(stream),
                };
                io::Result::Ok(TokioIo::new(stream))
            }
        });
        self.endpoint.connect_with_connector_lazy(connector)
    }
}

/// A host without the brackets of an IPv6 address.
pub(super) fn bare(host: &str) -> String {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned()
}

/// With TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}
