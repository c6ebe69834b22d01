//! PgBouncer, in front of a PostgreSQL server.

use std::{fs, net::TcpStream, time::Duration};

use crate::{
    net::free_port,
    postgres::{Postgres, servant},
    process::{Guarded, on_path, private_dir},
};

const READY: Duration = Duration::from_secs(10);

/// A PgBouncer of the test's own, in transaction mode. It has few connections to the server, so that a client gets
/// another one nearly every time.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    process: Guarded,
}

impl PgBouncer {
    /// Starts one with this number of connections to each database of the server, and waits until it listens.
    pub fn start(postgres: &Postgres, connections: u32) -> Self {
        let path = std::env::var("PATH").unwrap_or_default();
        let program = ["pgbouncer", "/usr/sbin/pgbouncer"].into_iter().find(|program| {
            if program.starts_with('/') { fs::exists(program).unwrap_or(false) } else { on_path(program) }
        });
        let program = program.unwrap_or_else(|| panic!("pgbouncer is missing in {path}: run ./test.sh"));
        let mut last = String::new();
        // Somebody else may take the port between our look and its start.
        for _ in 0..5 {
            let (dir, port) = (private_dir("pgbouncer"), free_port());
            let mut command = servant(&dir);
            let settings = format!(
                "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
                 default_pool_size = {connections}\nserver_round_robin = 1\nmax_client_conn = 200\n",
                postgres.port()
            );
            let file = dir.join("pgbouncer.ini");
            fs::write(&file, settings).expect("the directory is ours");
            command.extend([program.to_owned(), file.display().to_string()]);
            let process = Guarded::spawn(dir, command.remove(0), command);
            let bouncer = Self { port, process };
            match bouncer.process.try_ready(READY, || bouncer.listens()) {
                Ok(()) => return bouncer,
                Err(why) => last = format!("{why}{}", bouncer.process.log_tail()),
            }
        }
        panic!("pgbouncer {last}");
    }

    fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    /// The URL of a database of the server through this. Nothing in it tells a client of the pooler.
    pub fn url(&self, database: &str) -> String {
        let name = database.rsplit('/').next().unwrap_or(database);
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Kills it, and starts it again: all connections break.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process.start();
        self.process.wait_ready(READY, || self.listens());
    }
}
