//! Making a connection to a worker: a socket file, or TCP with or without TLS.

use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::discovery::{Address, Workers};
use super::link::LinkError;
use super::settings::Tls;

/// How long a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);

pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Connects to the worker at an address.
pub(super) async fn dial(
    workers: &Workers,
    tls: Option<Tls>,
    address: &Address,
) -> Result<(Reader, Writer), LinkError> {
    timeout(CONNECT_TIME, connect(workers, tls, address)).await.map_err(|_| LinkError::Late)?
}

async fn connect(workers: &Workers, tls: Option<Tls>, address: &Address) -> Result<(Reader, Writer), LinkError> {
    let at = match address {
        Address::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await.map_err(LinkError::Address)?.into_split();
            return Ok((Box::new(reader), Box::new(writer)));
        }
        Address::Tcp(at) => at,
    };
    let stream = TcpStream::connect(at).await.map_err(LinkError::Address)?;
    stream.set_nodelay(true).map_err(LinkError::Address)?;
    let (Some(tls), Workers::Tcp { host, .. }) = (tls, workers) else {
        let (reader, writer) = stream.into_split();
        return Ok((Box::new(reader), Box::new(writer)));
    };
    let name = ServerName::try_from(host.clone()).map_err(|error| LinkError::Tls(std::io::Error::other(error)))?;
    let stream = TlsConnector::from(tls.config).connect(name, stream).await.map_err(LinkError::Tls)?;
    let (reader, writer) = tokio::io::split(stream);
    Ok((Box::new(reader), Box::new(writer)))
}
