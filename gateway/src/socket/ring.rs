//! One system call for the writes to many sockets, where Linux offers that (`io_uring`).
//!
//! A message for a thousand sockets is a thousand writes, and each wakes up whoever reads at the other end of a
//! local connection. Put into a ring, dozens are one call, and a reader finds them all when it wakes up.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::{EnterFlags, IoUring, Probe, opcode, types};

/// The most that is written at once.
pub(crate) const AT_ONCE: usize = 64;

/// Bytes for one socket.
pub(crate) struct Write<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) bytes: &'a [u8],
}

/// A thread's ring.
enum Ring {
    Untried,
    Open(Box<IoUring>),
    /// The kernel has none for this process, or it has failed.
    Unavailable,
}

/// It has been said that there is none.
static SAID: AtomicBool = AtomicBool::new(false);

thread_local! {
    static RING: RefCell<Ring> = const { RefCell::new(Ring::Untried) };
}

/// Whether this thread has a ring.
pub(crate) fn is_open() -> bool {
    RING.with_borrow_mut(|ring| {
        if let Ring::Untried = ring {
            *ring = match open() {
                Ok(open) => Ring::Open(Box::new(open)),
                Err(error) => {
                    // The same for all threads; usual in containers.
                    if !SAID.swap(true, Ordering::Relaxed) {
                        tracing::info!(%error, "no io_uring: every socket is written to by itself");
                    }
                    Ring::Unavailable
                }
            };
        }
        matches!(ring, Ring::Open(_))
    })
}

/// Writes to each socket what it takes without being waited for, and says how many bytes that were: not all of
/// them where a buffer is full, the connection is gone or the ring has failed. A write of one's own then tells
/// which. Writes beyond [`AT_ONCE`] are not tried.
pub(crate) fn write(writes: &[Write<'_>]) -> Vec<usize> {
    let mut written = vec![0; writes.len()];
    RING.with_borrow_mut(|ring| {
        if let Ring::Open(open) = ring
            && let Err(error) = submit(open, writes, &mut written)
        {
            tracing::warn!(%error, "the io_uring is given up: every socket is written to by itself");
            *ring = Ring::Unavailable;
        }
    });
    written
}

fn open() -> std::io::Result<IoUring> {
    let ring = IoUring::new(AT_ONCE as u32)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    // Linux before 5.6 has rings that cannot do this.
    if probe.is_supported(opcode::Send::CODE) { Ok(ring) } else { Err(std::io::ErrorKind::Unsupported.into()) }
}

/// An error is one of the ring, which then is of no more use; what it has done counts all the same.
fn submit(ring: &mut IoUring, writes: &[Write<'_>], written: &mut [usize]) -> std::io::Result<()> {
    let mut queue = ring.submission();
    for (at, Write { socket, bytes }) in writes.iter().enumerate().take(AT_ONCE) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let send = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), length)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build()
            .user_data(at as u64);
        #[allow(unsafe_code, reason = "the kernel is given addresses")]
        // SAFETY: socket and bytes are borrowed for as long as this function runs, and it does not return
        // before the kernel has answered all that it has taken.
        let pushed = unsafe { queue.push(&send) };
        if pushed.is_err() {
            break;
        }
    }
    let queued = queue.len();
    drop(queue);
    // Nothing of this waits: with MSG_DONTWAIT the kernel is done with each when it has taken it.
    let entered = ring.submit_and_wait(queued);
    let left = ring.submission().len();
    let mut unanswered = queued - left;
    while unanswered > 0 {
        for answer in ring.completion() {
            unanswered -= 1;
            if let (Ok(count), Some(written)) =
                (usize::try_from(answer.result()), written.get_mut(answer.user_data() as usize))
            {
                *written = count;
            }
        }
        if unanswered > 0 {
            #[allow(unsafe_code, reason = "the general call of the ring")]
            // SAFETY: it submits nothing and has no argument.
            let waited = unsafe { ring.submitter().enter::<()>(0, 1, EnterFlags::GETEVENTS.bits(), None) };
            if waited.is_err() {
                std::thread::yield_now();
            }
        }
    }
    // What is left in the queue must not be sent later, when nobody holds the bytes any more.
    if left > 0 { entered.and(Err(std::io::ErrorKind::Other.into())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    fn write_each(sockets: &[&TcpStream], bytes: &[u8]) -> Vec<usize> {
        assert!(is_open(), "Linux 5.6 or later, and a sandbox that lets a process have an io_uring");
        write(&sockets.iter().map(|socket| Write { socket: socket.as_fd(), bytes }).collect::<Vec<_>>())
    }

    #[test]
    fn many_sockets_get_their_bytes_and_what_is_too_many_is_not_tried() {
        let pairs: Vec<_> = (0..AT_ONCE + 2).map(|_| pair()).collect();
        let servers: Vec<_> = pairs.iter().map(|(server, _)| server).collect();
        for round in 0..3 {
            let written = write_each(&servers, b"hello");
            assert!(written[..AT_ONCE].iter().all(|count| *count == 5), "round {round}: {written:?}");
            assert_eq!(written[AT_ONCE..], [0, 0]);
            for (_, client) in &pairs[..AT_ONCE] {
                let mut got = [0; 5];
                (&*client).read_exact(&mut got).unwrap();
                assert_eq!(&got, b"hello");
            }
        }
    }

    #[test]
    fn full_and_broken_sockets_take_nothing_and_disturb_nobody() {
        let ((full, full_client), (broken, broken_client), (good, mut good_client)) = (pair(), pair(), pair());
        drop(broken_client);
        broken.shutdown(std::net::Shutdown::Write).unwrap();
        let big = vec![b'x'; 1 << 20];
        let mut filled = 0;
        loop {
            let written = write_each(&[&full], &big)[0];
            filled += written;
            if written == 0 {
                break;
            }
        }
        assert_eq!(write_each(&[&full, &broken, &good], b"hello"), [0, 0, 5]);
        let mut got = [0; 5];
        good_client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        drop(full);
        let mut rest = Vec::new();
        (&full_client).read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), filled, "what was said to be written is what arrives");
    }

    #[test]
    fn without_a_ring_nothing_is_written() {
        let (server, _client) = pair();
        RING.set(Ring::Unavailable);
        assert!(!is_open());
        assert_eq!(write(&[Write { socket: server.as_fd(), bytes: b"hello" }]), [0]);
    }
}
