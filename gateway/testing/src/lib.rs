//! This crate is for tests of your own consumers. It starts a node in the test's process, and has clients for it.
//!
//! [`TestNode`] runs your routes on a free port, with the in-memory channel layer and a database in memory. Nothing has
//! to be installed, and tests can run at the same time. [`Communicator`] is a client in the manner of Channels'
//! `WebsocketCommunicator`: it sends frames, and waits for those that the test expects.
//!
//! ```
//! use gateway::{Consumer, Context, Frame, Outcome, Router};
//! use gateway_testing::{TestError, TestNode};
//!
//! struct Echo;
//!
//! impl Consumer for Echo {
//!     async fn receive(&mut self, ctx: &mut Context, frame: Frame) -> Outcome {
//!         if let Frame::Text(text) = frame {
//!             ctx.send_text(&text);
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), TestError> {
//! let node = TestNode::start(Router::new().route("/ws/echo/", || Echo)).await?;
//! let mut alice = node.communicator("/ws/echo/").user("alice").connect().await?;
//! alice.send_text("hello").await?;
//! assert_eq!(alice.receive_text().await?, "hello");
//! alice.disconnect(1000).await?;
//! # Ok(())
//! # }
//! ```

/// The programs of the document compile, and its test passes.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/consumers.md")]
struct Document;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use gateway::config::{ConfigErrors, collect};
use gateway::{Config, Event, GroupName, JwtAuth, NodeError, Router, RunningNode, TokenError};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// How long a client waits for an expected frame: 10 seconds, for busy machines.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Signs the tokens of a test's users.
const SECRET: &str = "a secret that is good for tests alone";

/// Why a step of a test failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestError {
    /// The settings of the node are wrong.
    #[error("settings: {0}")]
    Settings(#[from] ConfigErrors),
    /// The node does not start.
    #[error("the node does not start")]
    Node(#[from] NodeError),
    /// A token cannot be made.
    #[error("a token cannot be made")]
    Token(#[from] TokenError),
    /// The handshake was refused, with this status.
    #[error("the handshake was refused with {0}")]
    Refused(u16),
    /// The socket was closed, with this code and reason; 1006 without a close frame.
    #[error("closed with {0} {1:?}")]
    Closed(u16, String),
    /// The expected frame did not come within [`PATIENCE`].
    #[error("nothing came")]
    Nothing,
    /// A different frame came.
    #[error("something else came: {0:?}")]
    Unexpected(Message),
    /// A frame that is no JSON.
    #[error("no JSON: {0:?}")]
    NoJson(String),
    /// A name that cannot be a group's.
    #[error("{0:?} is no name of a group")]
    Group(String),
    /// The channel layer did not take an event.
    #[error("the channel layer did not take an event: {0}")]
    Layer(String),
    /// The connection or the protocol failed.
    #[error("the connection failed")]
    Connection(#[from] Box<tungstenite::Error>),
}

impl From<tungstenite::Error> for TestError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Http(answer) => Self::Refused(answer.status().as_u16()),
            error => Self::Connection(Box::new(error)),
        }
    }
}

/// A node in this process. It ends when this is dropped.
pub struct TestNode {
    node: RunningNode,
    auth: JwtAuth,
}

impl TestNode {
    /// A node with these routes, in-memory layer, database in memory and the open room policy, on a free port.
    pub async fn start(routes: Router) -> Result<Self, TestError> {
        Self::start_with(routes, &[]).await
    }

    /// The same with settings. They have the names of flags: `("anonymous", "talk")`, `("limits.frame_bytes", "1000")`.
    pub async fn start_with(routes: Router, settings: &[(&str, &str)]) -> Result<Self, TestError> {
        let defaults = [
            ("listen", "127.0.0.1:0"),
            ("internal-listen", "127.0.0.1:0"),
            ("database-url", "sqlite::memory:"),
            ("jwt-secret", SECRET),
            ("room-policy", "open"),
            ("drain.delay_seconds", "0"),
            ("drain.window_seconds", "0"),
        ];
        let flags: HashMap<String, String> =
            defaults.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let config = Config::from_collected(&collect(&flags, &|_| None, None)?)?;
        let auth = config.jwt();
        Ok(Self { node: RunningNode::start(config, routes).await?, auth })
    }

    /// A client of this path, which may have a query. [`Communicator::connect`] connects it.
    pub fn communicator(&self, path: &str) -> Communicator<'_> {
        Communicator {
            node: self,
            path: path.to_owned(),
            user: None,
            rooms: None,
            protocols: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// Sends an event to a group, as any process of the site may.
    pub async fn group_send(&self, group: &str, event: &Event) -> Result<(), TestError> {
        let group = GroupName::parse(group).map_err(|_| TestError::Group(group.to_owned()))?;
        let sent = self.node.node().layer.group_send(&group, event).await;
        sent.map_err(|error| TestError::Layer(error.to_string()))
    }

    /// The node: its store, its layer, its metrics.
    pub fn node(&self) -> &RunningNode {
        &self.node
    }

    /// Stops as on SIGTERM: clients are told 1012. Returns how many sockets were left.
    pub async fn stop(self) -> usize {
        self.node.drain().await
    }
}

/// A client that has not connected yet.
pub struct Communicator<'a> {
    node: &'a TestNode,
    path: String,
    user: Option<String>,
    rooms: Option<Vec<String>>,
    protocols: Vec<String>,
    headers: Vec<(String, String)>,
}

impl Communicator<'_> {
    /// Signs in as this user, with a token.
    #[must_use]
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    /// Rooms that the token lets in.
    #[must_use]
    pub fn rooms(mut self, rooms: &[&str]) -> Self {
        self.rooms = Some(rooms.iter().map(|room| (*room).to_owned()).collect());
        self
    }

    /// Offers a subprotocol, such as `gateway.v1`.
    #[must_use]
    pub fn subprotocol(mut self, name: &str) -> Self {
        self.protocols.push(name.to_owned());
        self
    }

    /// Sends a header with the handshake.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Connects; [`TestError::Refused`] has the status of a refusal.
    pub async fn connect(mut self) -> Result<Connected, TestError> {
        if let Some(user) = &self.user {
            let token = self.node.auth.sign(user, self.rooms.as_deref(), 3600)?;
            self.headers.push(("authorization".to_owned(), format!("Bearer {token}")));
        }
        let mut request = format!("ws://{}{}", self.node.node.public, self.path).into_client_request()?;
        let wrong = |error: http::Error| tungstenite::Error::from(error);
        if !self.protocols.is_empty() {
            self.headers.push(("sec-websocket-protocol".to_owned(), self.protocols.join(", ")));
        }
        for (name, value) in &self.headers {
            let name = http::HeaderName::try_from(name).map_err(|error| wrong(error.into()))?;
            let value = http::HeaderValue::try_from(value).map_err(|error| wrong(error.into()))?;
            request.headers_mut().append(name, value);
        }
        let connecting = timeout(PATIENCE, tokio_tungstenite::connect_async(request));
        let (socket, answer) = connecting.await.map_err(|_| TestError::Nothing)??;
        let subprotocol = answer.headers().get("sec-websocket-protocol").and_then(|value| value.to_str().ok());
        Ok(Connected { subprotocol: subprotocol.map(str::to_owned), socket })
    }
}

/// A client that is connected.
pub struct Connected {
    /// The subprotocol that the node has chosen.
    pub subprotocol: Option<String>,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Connected {
    /// Sends a text frame.
    pub async fn send_text(&mut self, text: &str) -> Result<(), TestError> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// Sends a value as JSON.
    pub async fn send_json(&mut self, value: &Value) -> Result<(), TestError> {
        self.send_text(&value.to_string()).await
    }

    /// Sends a binary frame.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), TestError> {
        Ok(self.socket.send(Message::binary(bytes.to_vec())).await?)
    }

    /// The next frame, which must be text.
    pub async fn receive_text(&mut self) -> Result<String, TestError> {
        match self.next(PATIENCE).await?.ok_or(TestError::Nothing)? {
            Message::Text(text) => Ok(text.to_string()),
            other => Err(TestError::Unexpected(other)),
        }
    }

    /// The next frame, which must be JSON.
    pub async fn receive_json(&mut self) -> Result<Value, TestError> {
        let text = self.receive_text().await?;
        serde_json::from_str(&text).map_err(|_| TestError::NoJson(text))
    }

    /// The next frame, which must be binary.
    pub async fn receive_bytes(&mut self) -> Result<Vec<u8>, TestError> {
        match self.next(PATIENCE).await?.ok_or(TestError::Nothing)? {
            Message::Binary(bytes) => Ok(bytes.to_vec()),
            other => Err(TestError::Unexpected(other)),
        }
    }

    /// Whether no frame comes within this time.
    pub async fn receive_nothing(&mut self, during: Duration) -> Result<bool, TestError> {
        Ok(self.next(during).await?.is_none())
    }

    /// Code and reason of the node's close. It must come before any other frame.
    pub async fn receive_close(&mut self) -> Result<(u16, String), TestError> {
        match self.next(PATIENCE).await {
            Err(TestError::Closed(code, reason)) => Ok((code, reason)),
            Err(error) => Err(error),
            Ok(None) => Err(TestError::Nothing),
            Ok(Some(other)) => Err(TestError::Unexpected(other)),
        }
    }

    /// Closes with this code and waits for the node's answer. Frames that come before it are dropped.
    pub async fn disconnect(mut self, code: u16) -> Result<(), TestError> {
        self.socket.close(Some(CloseFrame { code: code.into(), reason: "".into() })).await?;
        loop {
            match self.next(PATIENCE).await {
                Ok(Some(_)) => {}
                Ok(None) => return Err(TestError::Nothing),
                Err(TestError::Closed(..)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next text or binary frame, within this time.
    async fn next(&mut self, within: Duration) -> Result<Option<Message>, TestError> {
        let message = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => return Ok(message),
                    Some(Ok(Message::Close(frame))) => {
                        let (code, reason) =
                            frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                        return Err(TestError::Closed(code, reason));
                    }
                    // Pings are answered by reading on.
                    Some(Ok(_)) => {}
                    Some(Err(tungstenite::Error::ConnectionClosed)) | None => {
                        return Err(TestError::Closed(1006, String::new()));
                    }
                    Some(Err(error)) => return Err(error.into()),
                }
            }
        };
        timeout(within, message).await.ok().transpose()
    }
}
