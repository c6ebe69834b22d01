//! A consumer of one's own: it echoes, knows who is there, and shares a room with everybody.
//!
//! `cargo run --example echo`, then connect to `ws://127.0.0.1:8000/ws/echo/?token=…`.
#![allow(clippy::print_stdout, reason = "an example says where it listens")]

use futures_util::FutureExt;
use gateway::config::{Config, collect};
use gateway::{
    Consumer, Context, Event, Frame, GroupName, Handlers, JwtAuth, Outcome, Refusal, Rendering, Router, RunningNode,
};

/// What each connection remembers.
#[derive(Default)]
pub(crate) struct Echo {
    pokes: u32,
}

impl Consumer for Echo {
    fn handlers(handlers: &mut Handlers<Self>) {
        // Shared: one frame for everybody. Own: runs in each connection, with its state.
        handlers
            .shared("echo.shout", |event| Some(Rendering::text("shout", event.text("text")?)))
            .own("echo.poke", |echo, ctx, _event| echo.poke(ctx).boxed());
    }

    async fn connect(&mut self, ctx: &mut Context) -> Result<(), Refusal> {
        ctx.group_add(&everybody()?).await
    }

    async fn receive(&mut self, ctx: &mut Context, frame: Frame) -> Outcome {
        match frame {
            Frame::Binary(bytes) => ctx.send_bytes(&bytes.into()),
            Frame::Text(text) => match text.strip_prefix("all: ") {
                Some(text) => self.shout(ctx, text).await,
                None => ctx.send_text(&text),
            },
        }
        Ok(())
    }
}

impl Echo {
    async fn shout(&self, ctx: &Context, text: &str) {
        let Ok(group) = everybody() else { return };
        let _ = ctx.group_send(&group, &Event::new("echo.shout").with("text", text)).await;
    }

    async fn poke(&mut self, ctx: &mut Context) -> Outcome {
        self.pokes += 1;
        ctx.send_text(&format!("poked {} times", self.pokes));
        Ok(())
    }
}

fn everybody() -> Result<GroupName, Refusal> {
    GroupName::parse("echo").map_err(|_| Refusal::Failed)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = [("database-url", "sqlite::memory:"), ("jwt-secret", "only-for-this-example")];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let config = Config::from_collected(&collect(&flags, &|name| std::env::var(name).ok(), None)?)?;
    let token = JwtAuth::new(&config.jwt_secrets, "sub", &[], None).sign("alice", None, 3600)?;
    let node = RunningNode::start(config, Router::new().route("/ws/echo/", Echo::default)).await?;
    println!("ws://{}/ws/echo/?token={token}", node.public);
    tokio::signal::ctrl_c().await?;
    node.drain().await;
    Ok(())
}
