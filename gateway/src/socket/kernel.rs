//! What the kernel says of a connection.

use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

/// Bytes that were written to it and that the other end has not confirmed (`SIOCOUTQ` of tcp(7), called `TIOCOUTQ`
/// too); none where the kernel does not say.
pub(super) fn unconfirmed(io: &TcpStream) -> Option<i32> {
    let mut bytes: libc::c_int = 0;
    #[allow(unsafe_code, reason = "ioctl takes an address, and nothing we use wraps this call")]
    // SAFETY: the descriptor is open for as long as it is borrowed, and this request writes one `int`.
    let answer = unsafe { libc::ioctl(io.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (answer == 0).then_some(bytes)
}
