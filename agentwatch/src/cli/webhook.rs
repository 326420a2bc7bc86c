//! `agentwatch webhook`: what the daemon starts, as an unprivileged user, to tell a web hook of an approval.

use std::{io::Read as _, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use reqwest::{Client, Url, header, redirect};
use rustls::{ClientConfig, RootCertStore};

/// How long the other side may take to take the connection, and to answer. The daemon's own deadline holds as well.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(60);
/// The longest event, in bytes.
const LONGEST: u64 = 1 << 20;

/// The variable that says where to: such addresses are often secrets themselves, and everybody may read arguments.
pub const ADDRESS: &str = "AGENTWATCH_WEBHOOK";

/// Post standard input to a web hook as JSON (the daemon starts it by itself)
#[derive(Args, Debug)]
#[command(hide = true)]
pub struct WebhookArgs {}

impl WebhookArgs {
    pub async fn run(self) -> Result<ExitCode> {
        let address =
            std::env::var(ADDRESS).with_context(|| format!("{ADDRESS} is to say where to"))?;
        let url = check(&address)?;
        let mut body = Vec::new();
        std::io::stdin()
            .lock()
            .take(LONGEST + 1)
            .read_to_end(&mut body)
            .context("read standard input")?;
        ensure!(
            body.len() as u64 <= LONGEST,
            "the event is longer than {LONGEST} bytes"
        );
        let response = client(&url)?
            .post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .send()
            .await
            .context("post")?;
        ensure!(
            response.status().is_success(),
            "the web hook answered {}",
            response.status()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// The address of a web hook.
///
/// # Errors
/// Where it is none.
pub fn check(url: &str) -> Result<Url> {
    let parsed = Url::parse(url).with_context(|| format!("{url:?} is no URL"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        bail!("{url:?} is no web hook; hint: http://HOST:PORT/PATH or https://…");
    }
    Ok(parsed)
}

/// One that goes where it is told and nowhere else.
fn client(url: &Url) -> Result<Client> {
    let mut roots = RootCertStore::empty();
    if url.scheme() == "https" {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        ensure!(
            !roots.is_empty(),
            "this host trusts no authority; hint: install ca-certificates"
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        .user_agent(concat!("agentwatch/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("make the client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_addresses_are_web_hooks() {
        assert!(check("http://127.0.0.1:8080/x").is_ok());
        assert!(check("https://hooks.example.org/T0/B0").is_ok());
        for wrong in [
            "",
            "127.0.0.1:8080",
            "file:///etc/passwd",
            "ftp://x/",
            "http://",
        ] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }
}
