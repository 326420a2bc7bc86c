//! The figures over HTTP: one path, on loopback or a unix socket, a few connections at once.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::timeout,
};

/// How long daemon and collector may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last.
const LONGEST: Duration = Duration::from_secs(60);
/// Connections at once; further ones wait.
const MOST: usize = 16;
/// OpenMetrics, as Prometheus asks for it.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where figures are served: on this host alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("{path:?} is no absolute path"))
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("{text:?} is neither ADDRESS:PORT nor unix:PATH; hint: 127.0.0.1:9464")
        })?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!(
                "{address} is not of this host alone: figures name policies and rules; hint: 127.0.0.1:{}",
                address.port()
            ))
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Serves until SIGTERM.
pub(super) async fn serve(listen: &Listen, runtime_dir: &Path) -> Result<()> {
    nix::sys::prctl::set_no_new_privs().context("give up new privileges")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let room = Arc::new(Semaphore::new(MOST));
    let directory: Arc<Path> = runtime_dir.into();
    let accepting = async {
        match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("listen on {address}"))?;
                loop {
                    let permit = Arc::clone(&room).acquire_owned().await?;
                    match listener.accept().await {
                        Ok((stream, _)) => start(stream, &directory, permit),
                        Err(error) => pause(&error).await,
                    }
                }
            }
            Listen::Unix(path) => {
                clear(path).await?;
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("listen on {}", path.display()))?;
                loop {
                    let permit = Arc::clone(&room).acquire_owned().await?;
                    match listener.accept().await {
                        Ok((stream, _)) => start(stream, &directory, permit),
                        Err(error) => pause(&error).await,
                    }
                }
            }
        }
    };
    tokio::select! {
        result = accepting => result,
        _ = terminate.recv() => Ok(()),
    }
}

/// Takes a socket away that nobody listens on any more, and nothing else.
async fn clear(path: &Path) -> Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    ensure!(
        meta.file_type().is_socket(),
        "{} is there and is no socket; hint: another path",
        path.display()
    );
    ensure!(
        tokio::net::UnixStream::connect(path).await.is_err(),
        "somebody listens on {} already",
        path.display()
    );
    std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn start(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    directory: &Arc<Path>,
    permit: tokio::sync::OwnedSemaphorePermit,
) {
    let directory = Arc::clone(directory);
    tokio::spawn(async move {
        let service = service_fn(move |request| answer(request, Arc::clone(&directory)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service);
        // Whoever speaks no HTTP, or hangs up, is of no interest.
        let _ = timeout(LONGEST, connection).await;
        drop(permit);
    });
}

async fn answer(
    request: Request<Incoming>,
    directory: Arc<Path>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, body) = if request.uri().path() != "/metrics" {
        (
            StatusCode::NOT_FOUND,
            "text/plain",
            "figures are at /metrics\n".to_owned(),
        )
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "GET\n".to_owned(),
        )
    } else {
        match super::text(&directory).await {
            Ok(text) => (StatusCode::OK, FORMAT, text),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "figures could not be told");
                let body = "figures could not be told; the log says why\n".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", body)
            }
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_but_a_socket_without_an_owner_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("at");
        clear(&path).await.unwrap();
        for what in ["a file", "a directory", "a link"] {
            match what {
                "a file" => std::fs::write(&path, "precious").unwrap(),
                "a directory" => std::fs::create_dir(&path).unwrap(),
                _ => std::os::unix::fs::symlink("/dev/null", &path).unwrap(),
            }
            let error = clear(&path).await.unwrap_err().to_string();
            assert!(error.contains("is no socket"), "{what}: {error}");
            assert!(path.symlink_metadata().is_ok(), "{what} is gone");
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        }
        let listener = UnixListener::bind(&path).unwrap();
        let error = clear(&path).await.unwrap_err().to_string();
        assert!(error.contains("listens"), "{error}");
        drop(listener);
        clear(&path).await.unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn only_this_host_is_listened_on() {
        for good in [
            "127.0.0.1:9464",
            "[::1]:9464",
            "unix:/run/agentwatch/metrics.sock",
        ] {
            assert_eq!(good.parse::<Listen>().unwrap().to_string(), good);
        }
        for (wrong, says) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("192.0.2.1:80", "127.0.0.1:80"),
            ("9464", "neither"),
            ("localhost:9464", "neither"),
            ("unix:metrics.sock", "absolute"),
        ] {
            let error = wrong.parse::<Listen>().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
