//! MariaDB servers.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    disk::Disk,
    net::free_port,
    postgres::wait_stopped,
    process::{Guarded, private_dir},
    tls::{self, TlsOptions},
};

const READY: Duration = Duration::from_secs(60);

/// The watchdog makes and runs it, so that nothing stays when the test dies in between. `$1`
/// makes the database, `$2` is the option that allows it to root, the rest the server's command.
const START: &str = r#"
install=$1; user=$2; shift 2
# Asked to stop, let the installation finish: killed, it would write into a directory being removed.
trap exit TERM
[ -e data/mysql ] ||
  "$install" --no-defaults --datadir="$PWD/data" --auth-root-authentication-method=normal --skip-test-db $user ||
  exit
exec "$@"
"#;

/// A MariaDB server of the test's own, on a free port of 127.0.0.1, with the user `gateway` and no
/// password. It does not sync to the disk: commits outlive the server's death, but not
/// the machine's.
#[derive(Debug)]
pub struct MariaDb {
    port: u16,
    process: Guarded,
    authority: Option<PathBuf>,
    disk: Option<Disk>,
    databases: AtomicU32,
}

#[derive(Default)]
struct Setup {
    durable: bool,
    /// The size of a disk of its own, in MiB.
    disk: Option<u32>,
    tls: Option<TlsOptions>,
}

impl MariaDb {
    /// The server that all tests of this process share. Each test takes a database of its own there.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<MariaDb> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts a server that the test has alone, to kill and freeze it, and waits until it answers.
    pub fn start() -> Self {
        Self::launch(&Setup::default())
    }

    /// Starts a server that speaks TLS with clients that ask for it.
    pub fn start_with_tls(options: &TlsOptions) -> Self {
        Self::launch(&Setup { tls: Some(options.clone()), ..Setup::default() })
    }

    /// Starts a server whose files lie on a disk of this many MiB. It needs some 150 of them for itself.
    pub fn start_on_small_disk(megabytes: u32) -> Self {
        Self::launch(&Setup { disk: Some(megabytes), ..Setup::default() })
    }

    /// The same with MariaDB's own settings for buffers and the disk: for measuring.
    pub fn start_durable() -> Self {
        Self::launch(&Setup { durable: true, ..Setup::default() })
    }

    fn launch(setup: &Setup) -> Self {
        let mut last = String::new();
        // Somebody else may take the port between our look and the server's start.
        for _ in 0..5 {
            match Self::try_start(setup) {
                Ok(server) => return server,
                Err(why) => last = why,
            }
        }
        panic!("mariadbd {last}");
    }

    fn try_start(setup: &Setup) -> Result<Self, String> {
        let (install, server) = (program("mariadb-install-db"), program("mariadbd"));
        let dir = private_dir("mariadb");
        let data = format!("--datadir={}", dir.join("data").display());
        let root = fs::metadata(&dir).expect("just made").uid() == 0;
        let user = root.then_some("--user=root");
        // One statement a line, or it is an error in the log and nothing else.
        let init = dir.join("init.sql");
        let sql = "CREATE USER IF NOT EXISTS gateway@'%';\nGRANT ALL ON *.* TO gateway@'%';\n";
        fs::write(&init, sql).expect("the directory is ours");
        let port = free_port();
        let mut command = vec![
            "-c".to_owned(),
            START.into(),
            "mariadbd".into(),
            install.display().to_string(),
            user.unwrap_or_default().into(),
            server.display().to_string(),
            "--no-defaults".into(),
            data,
            format!("--socket={}", dir.join("sock").display()),
            format!("--pid-file={}", dir.join("pid").display()),
            format!("--init-file={}", init.display()),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".into(),
            "--skip-name-resolve".into(),
            "--skip-log-bin".into(),
            "--max-connections=300".into(),
            "--innodb-use-native-aio=0".into(),
            // Stopped, it does not tidy up.
            "--innodb-fast-shutdown=2".into(),
        ];
        if !setup.durable {
            // Written at every commit, left to the system to sync.
            command.extend(["--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync"].map(str::to_owned));
            command.extend(["--innodb-doublewrite=0", "--innodb-buffer-pool-size=32M"].map(str::to_owned));
            command.push("--innodb-log-file-size=16M".into());
        }
        command.extend(user.map(str::to_owned));
        let authority = setup.tls.as_ref().map(|options| {
            let made = tls::make(&dir, options);
            for (option, file) in [("cert", &made.certificate), ("key", &made.key), ("ca", &made.ca_file)] {
                command.push(format!("--ssl-{option}={}", file.display()));
            }
            made.ca_file
        });
        command.insert(0, "sh".into());
        let disk = setup.disk.map(|megabytes| {
            let data = dir.join("data");
            fs::create_dir(&data).expect("the directory is ours");
            let disk = Disk::mount(&data, megabytes);
            command.splice(..0, disk.command());
            disk
        });
        let process = Guarded::spawn_with(dir, "TERM", &[], command.remove(0), command);
        let server = Self { port, process, authority, disk, databases: AtomicU32::new(0) };
        match server.process.try_ready(READY, || server.answers()) {
            Ok(()) => Ok(server),
            Err(why) => Err(format!("{why}{}", server.process.log_tail())),
        }
    }

    /// The socket lies in our own directory, and the server ends when it cannot have its port.
    fn answers(&self) -> bool {
        self.client("mysql", "SELECT 1 FROM mysql.global_priv WHERE User = 'gateway'")
            .is_ok_and(|rows| rows.trim() == "1")
    }

    /// The file of the authority that signed the certificate of [`start_with_tls`](Self::start_with_tls).
    pub fn authority(&self) -> &Path {
        self.authority.as_deref().expect("started with TLS")
    }

    /// The disk of [`start_on_small_disk`](Self::start_on_small_disk).
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("started on a small disk")
    }

    /// One of the server's own programs, such as `mariadb-dump`.
    pub fn program(&self, name: &str) -> PathBuf {
        program(name)
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Makes an empty database and returns its URL.
    pub fn fresh_database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("mysql", &format!("CREATE DATABASE {name}"));
        format!("mysql://gateway@127.0.0.1:{}/{name}", self.port)
    }

    /// The URL of a database that is always there.
    pub fn url(&self) -> String {
        self.sql("mysql", "CREATE DATABASE IF NOT EXISTS gateway");
        format!("mysql://gateway@127.0.0.1:{}/gateway", self.port)
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL in a database, given by name or URL, and returns the rows, columns split by tabs.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.client(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}{}", self.process.log_tail()))
    }

    fn client(&self, database: &str, sql: &str) -> Result<String, String> {
        let database = database.rsplit('/').next().unwrap_or(database);
        let socket = format!("--socket={}", self.process.dir().join("sock").display());
        let output = Command::new(program("mariadb"))
            .args(["--no-defaults", "--user=root", "--connect-timeout=5", "--batch", "--skip-column-names"])
            .args([&socket, "--default-character-set=utf8mb4", "-D", database, "-e", sql])
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Kills the server (`SIGKILL`); returns when it is dead.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Starts it again after [`kill9`](Self::kill9), on the same port with the same data.
    pub fn restart(&mut self) {
        if self.process.running() {
            self.kill9();
        }
        self.process.start();
        self.process.wait_ready(READY, || self.answers());
    }

    /// Freezes the server (`SIGSTOP`): connections stay open, and no answer comes.
    pub fn pause(&mut self) {
        self.process.pause();
        wait_stopped(&[self.process.pid()]);
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.process.resume();
    }
}

/// Servers may live off the search path.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run ./test.sh, or apt-get install mariadb-server"))
}
