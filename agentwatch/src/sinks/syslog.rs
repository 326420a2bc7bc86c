//! RFC 5424 over TCP (octet counting, RFC 6587), TLS (RFC 5425), UDP (RFC 5426), and the local socket.
//!
//! Syslog acknowledges nothing. Over TCP and TLS a delivery is taken as made when the receiver's kernel has all of it and the connection
//! has gone on for [`SETTLING`]; where it breaks sooner, what was sent in that time is sent again. UDP and the local socket lose what
//! the receiver does not fetch, without a word.

use std::{os::fd::AsRawFd as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use reqwest::Url;
use rustls::{ClientConfig, pki_types::ServerName};
use syslog_fmt::{
    Facility, Severity,
    v5424::{Config, Formatter, Msg, Timestamp},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket, UnixDatagram},
    time::{sleep, timeout},
};

use super::{Failure, Needs, Sink, config::SyslogTarget, tls::Stream};
use crate::event::{
    Event,
    format::Format,
    model::{Kind, Verdict},
};

/// How long a connection must go on until what was sent over it is taken as delivered.
const SETTLING: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(10);
/// How often it is looked whether the receiver's kernel has everything.
const LOOK: Duration = Duration::from_millis(2);

pub(crate) struct Syslog {
    to: To,
    facility: Facility,
    /// Id of the structured data.
    element: String,
    format: Format,
    connection: Option<Connection>,
    /// For the host that events come from.
    formatter: Option<(String, Formatter)>,
}

enum To {
    Tcp(String, u16),
    Tls(String, u16, Arc<ClientConfig>),
    Udp(String, u16),
    Unix(PathBuf),
}

enum Connection {
    /// And the descriptor of its socket.
    Stream(Box<dyn Stream>, i32),
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Syslog {
    pub(super) fn new(target: &SyslogTarget, format: Format) -> Result<Self> {
        Ok(Self {
            to: address(target)?,
            facility: facility(&target.facility)?,
            element: element(&target.sd_id)?,
            format,
            connection: None,
            formatter: None,
        })
    }

    pub(super) fn needs(&self, needs: &mut Needs) {
        match &self.to {
            To::Tcp(host, port) | To::Tls(host, port, _) => {
                needs.ports.push(*port);
                needs.names |= host.parse::<std::net::IpAddr>().is_err();
            }
            To::Udp(host, _) => needs.names |= host.parse::<std::net::IpAddr>().is_err(),
            To::Unix(_) => {}
        }
    }

    async fn connect(&self) -> Result<Connection> {
        Ok(match &self.to {
            To::Tcp(host, port) => {
                let stream = tcp(host, *port).await?;
                let descriptor = stream.as_raw_fd();
                Connection::Stream(Box::new(stream), descriptor)
            }
            To::Tls(host, port, config) => {
                let stream = tcp(host, *port).await?;
                let descriptor = stream.as_raw_fd();
                let name = ServerName::try_from(host.clone()).context("the server's name")?;
                let stream = tokio_rustls::TlsConnector::from(Arc::clone(config))
                    .connect(name, stream)
                    .await
                    .with_context(|| format!("agree on TLS with {host}:{port}"))?;
                Connection::Stream(Box::new(stream), descriptor)
            }
            To::Udp(host, port) => {
                let peer = tokio::net::lookup_host((host.as_str(), *port))
                    .await
                    .with_context(|| format!("look up {host}"))?
                    .next()
                    .with_context(|| format!("{host} has no address"))?;
                let own = if peer.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(own).await?;
                socket.connect(peer).await?;
                Connection::Udp(socket)
            }
            To::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket
                    .connect(path)
                    .with_context(|| format!("connect to {}", path.display()))?;
                Connection::Unix(socket)
            }
        })
    }

    /// The message of an event.
    fn message(&mut self, event: &Event) -> Result<Vec<u8>> {
        let formatter = match &self.formatter {
            Some((host, formatter)) if *host == event.host => formatter,
            _ => {
                let host = hostname(&event.host);
                let formatter = Config {
                    facility: self.facility,
                    hostname: Some(&host),
                    app_name: Some("agentwatch"),
                    proc_id: None,
                }
                .into_formatter();
                &self.formatter.insert((event.host.clone(), formatter)).1
            }
        };
        let time = event.time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let rule = event.rule.as_ref().map_or("", |rule| rule.id.as_str());
        let fields = [
            ("id", harmless(&event.id)),
            ("session", harmless(&event.session.id)),
            ("name", harmless(&event.session.name)),
            ("verdict", event.verdict.name().to_owned()),
            ("rule", harmless(rule)),
        ];
        let data = fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (*name, value.as_str()));
        let line = self.format.line(event);
        let mut message = Vec::with_capacity(line.len() + 512);
        formatter.write_with_data(
            &mut message,
            severity(event),
            Timestamp::PreformattedStr(&time),
            // As bytes, because as text the message would begin with a byte order mark, which receivers do not take off.
            Msg::NonUnicodeBytes(&line),
            Some(event.kind.name()),
            [(self.element.as_str(), data)],
        )?;
        Ok(message)
    }

    async fn send(&mut self, events: &[Event]) -> Result<(), Failure> {
        // Taken, so that what is given up half-way leaves no half of a message on a connection that is used again.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => timeout(CONNECT, self.connect())
                .await
                .map_err(|_| anyhow!("no connection in {} seconds", CONNECT.as_secs()))??,
        };
        let messages = events
            .iter()
            .map(|event| self.message(event))
            .collect::<Result<Vec<_>>>()?;
        match &mut connection {
            Connection::Stream(stream, descriptor) => {
                let mut frames =
                    Vec::with_capacity(messages.iter().map(|message| message.len() + 8).sum());
                for message in &messages {
                    frames.extend_from_slice(message.len().to_string().as_bytes());
                    frames.push(b' ');
                    frames.extend_from_slice(message);
                }
                stream.write_all(&frames).await?;
                stream.flush().await?;
                while unsent(*descriptor)? > 0 {
                    // What was not acknowledged stays so once the connection is broken.
                    there(stream).await?;
                    sleep(LOOK).await;
                }
                there(stream).await?;
            }
            Connection::Udp(socket) => {
                for message in &messages {
                    datagram(socket.send(message).await)?;
                }
            }
            Connection::Unix(socket) => {
                for message in &messages {
                    datagram(socket.send(message).await)?;
                }
            }
        }
        self.connection = Some(connection);
        Ok(())
    }
}

impl Sink for Syslog {
    async fn deliver(&mut self, events: &[Event]) -> Result<u64, Failure> {
        self.send(events).await.map(|()| 0)
    }

    fn settling(&self) -> Duration {
        SETTLING
    }

    async fn check(&mut self) -> Result<(), Failure> {
        let Some(Connection::Stream(stream, _)) = &mut self.connection else {
            return Ok(());
        };
        let there = there(stream).await;
        if there.is_err() {
            self.connection = None;
        }
        there
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((host, port))
        .await
        .with_context(|| format!("connect to {host}:{port}"))?;
    // A receiver that is gone without a word is noticed by this, at the latest.
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    socket.set_keepalive(true)?;
    Ok(stream)
}

/// Bytes that the receiver's kernel has not acknowledged.
fn unsent(descriptor: i32) -> Result<i32> {
    let mut bytes = 0;
    // SAFETY: the descriptor is that of the socket, which the caller holds; TIOCOUTQ writes one int.
    let outcome = unsafe { libc::ioctl(descriptor, libc::TIOCOUTQ, &raw mut bytes) };
    nix::errno::Errno::result(outcome).context("ask what was not acknowledged")?;
    Ok(bytes)
}

/// Whether the receiver has not closed the connection.
async fn there(stream: &mut Box<dyn Stream>) -> Result<(), Failure> {
    let mut buffer = [0; 256];
    loop {
        match timeout(Duration::ZERO, stream.read(&mut buffer)).await {
            Ok(Ok(0)) => return Err(anyhow!("the receiver closed the connection").into()),
            // Syslog has no answers; what is said is not for us.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Ok(()),
        }
    }
}

/// One that is too long will never be taken.
fn datagram(sent: std::io::Result<usize>) -> Result<(), Failure> {
    match sent {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Err(Failure::Refused(
            anyhow!("an event is longer than a datagram; hint: tcp:// has no such limit"),
        )),
        other => Ok(other.map(drop)?),
    }
}

fn severity(event: &Event) -> Severity {
    match (event.kind, event.verdict) {
        (Kind::Loss, _) => Severity::Err,
        (_, Verdict::Denied) => Severity::Warning,
        (_, Verdict::Held | Verdict::Audited) => Severity::Notice,
        _ => Severity::Info,
    }
}

/// A name that the header can have: up to 255 printable characters of ASCII.
fn hostname(name: &str) -> String {
    if !name.is_empty() && name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        name.to_owned()
    } else {
        "-".to_owned()
    }
}

/// Without control characters, which would begin a new line in many a receiver's file.
fn harmless(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect()
}

fn address(target: &SyslogTarget) -> Result<To> {
    let text = &target.address;
    if let Some(path) = text.strip_prefix("unix:") {
        ensure!(
            path.starts_with('/'),
            "syslog.address: {path:?} is not an absolute path"
        );
        return Ok(To::Unix(path.into()));
    }
    let known = "tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT and unix:PATH";
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "tcp" | "tls" | "udp"))
        .with_context(|| format!("syslog.address: {text:?} is none of {known}"))?;
    let host = url
        .host_str()
        .with_context(|| format!("syslog.address: {text:?} has no host"))?;
    let host = super::tls::bare(host);
    let port = |usual| url.port().unwrap_or(usual);
    Ok(match url.scheme() {
        "tcp" => To::Tcp(host, port(514)),
        "udp" => To::Udp(host, port(514)),
        _ => {
            ensure!(
                ServerName::try_from(host.clone()).is_ok(),
                "syslog.address: {host:?} cannot be the name of a server"
            );
            To::Tls(host, port(6514), super::tls::client(&target.tls, &[])?)
        }
    })
}

/// An SD-ID of RFC 5424, section 6.3.2, which belongs to somebody.
fn element(id: &str) -> Result<String> {
    let named = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'=' | b']' | b'"' | b'@'))
    };
    let numbered = |number: &str| {
        number
            .split('.')
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let fits = id.len() <= 32
        && id
            .split_once('@')
            .is_some_and(|(name, number)| named(name) && numbered(number));
    ensure!(
        fits,
        "sd_id {id:?} is not NAME@NUMBER of at most 32 characters; hint: agentwatch@32473"
    );
    Ok(id.to_owned())
}

fn facility(name: &str) -> Result<Facility> {
    Ok(match name {
        "user" => Facility::User,
        "daemon" => Facility::Daemon,
        "auth" => Facility::Auth,
        "authpriv" => Facility::Authpriv,
        "local0" => Facility::Local0,
        "local1" => Facility::Local1,
        "local2" => Facility::Local2,
        "local3" => Facility::Local3,
        "local4" => Facility::Local4,
        "local5" => Facility::Local5,
        "local6" => Facility::Local6,
        "local7" => Facility::Local7,
        _ => bail!(
            "syslog.facility: {name:?} is none of user, daemon, auth, authpriv, local0 to local7"
        ),
    })
}
