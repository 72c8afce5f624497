//! Captures media as it leaves the bridge, with tcpdump, and reads the file back (pcap, link type
//! LINUX_SLL2, either byte order, either resolution of time).

use std::fs::File;
use std::io::{BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::packet::{Datagram, Hardware};
use crate::lab::Names;

/// Bytes kept of each packet: sound and reports whole, pictures by their beginning and their length.
const KEPT: usize = 400;
/// No packet on this bridge is longer; a record that says so means a damaged file.
const RECORD_MAX: usize = 256 * 1024;

/// A running capture.
pub(crate) struct Capture {
    process: Child,
    pub(crate) file: PathBuf,
}

impl Capture {
    /// Captures what goes out of the bridge's ports from or to clients; returns once it runs.
    pub(crate) fn start(names: Names, file: &Path) -> Result<Self> {
        let kept = KEPT.to_string();
        // Outgoing only, or every packet would be there once for each port it passes. Between nodes
        // run relays, which have keys of their own: not of interest here.
        let filter = "udp and not (src net 10.79.0.0/29 and dst net 10.79.0.0/29)";
        let mut process = Command::new("ip")
            .args(["netns", "exec", &names.switch(), "tcpdump"])
            .args(["-i", "any", "-Q", "out", "-n", "-p", "-U", "-Z", "root"])
            .args(["-B", "16384", "-s", &kept, "-w"])
            .arg(file)
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("tcpdump (package tcpdump)")?;
        testkit::cluster::wait(Duration::from_secs(10), "tcpdump writes its file", || {
            if let Some(status) = process.try_wait()? {
                bail!("tcpdump ended with {status}");
            }
            Ok(file.metadata().is_ok_and(|data| data.len() >= 24))
        })?;
        Ok(Self {
            process,
            file: file.to_owned(),
        })
    }

    /// Ends it and waits until the file is whole.
    pub(crate) fn stop(mut self) -> Result<PathBuf> {
        let pid = self.process.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status()?;
        self.process.wait()?;
        Ok(self.file.clone())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads a capture packet by packet.
pub(crate) struct Reader<R> {
    source: R,
    swapped: bool,
    nanoseconds: bool,
}

impl Reader<BufReader<File>> {
    /// Of a file.
    pub(crate) fn open(file: &Path) -> Result<Self> {
        Self::new(BufReader::new(File::open(file)?))
    }
}

impl<R: Read> Reader<R> {
    /// Reads the file's header.
    ///
    /// # Errors
    /// If it is no pcap of link type LINUX_SLL2.
    pub(crate) fn new(mut source: R) -> Result<Self> {
        let mut header = [0; 24];
        source.read_exact(&mut header).context("a pcap header")?;
        let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let (swapped, nanoseconds) = match magic {
            0xa1b2_c3d4 => (false, false),
            0xa1b2_3c4d => (false, true),
            0xd4c3_b2a1 => (true, false),
            0x4d3c_b2a1 => (true, true),
            _ => bail!("not a pcap file: magic {magic:08x}"),
        };
        let reader = Self {
            source,
            swapped,
            nanoseconds,
        };
        let link = reader.number(&header[20..24]) & 0x0fff_ffff;
        ensure!(link == 276, "link type {link}, not LINUX_SLL2");
        Ok(reader)
    }

    fn number(&self, bytes: &[u8]) -> u32 {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if self.swapped {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    }

    /// The next UDP datagram over IPv4; others are passed over. `None` at the end, also where the
    /// last record was cut short.
    ///
    /// # Errors
    /// If a record cannot be one.
    pub(crate) fn next(&mut self) -> Result<Option<Datagram>> {
        loop {
            let mut header = [0; 16];
            if self.source.read_exact(&mut header).is_err() {
                return Ok(None);
            }
            let length = usize::try_from(self.number(&header[8..12]))?;
            ensure!(length <= RECORD_MAX, "a record of {length} bytes");
            let mut bytes = vec![0; length];
            if self.source.read_exact(&mut bytes).is_err() {
                return Ok(None);
            }
            let fraction = f64::from(self.number(&header[4..8]));
            let fraction = fraction / if self.nanoseconds { 1e9 } else { 1e6 };
            let at = f64::from(self.number(&header[0..4])) + fraction;
            if let Some(datagram) = parse(at, &bytes) {
                return Ok(Some(datagram));
            }
        }
    }
}

fn parse(at: f64, bytes: &[u8]) -> Option<Datagram> {
    const LINK: usize = 20;
    let link = bytes.get(..LINK)?;
    let ethertype = u16::from_be_bytes([link[0], link[1]]);
    let ip = bytes.get(LINK..)?;
    if ethertype != 0x0800 || ip.len() < 20 || ip[0] >> 4 != 4 || ip[9] != 17 {
        return None;
    }
    let header = usize::from(ip[0] & 15) * 4;
    let udp = ip.get(header..)?;
    if udp.len() < 8 {
        return None;
    }
    let mut hardware = [0; 6];
    hardware.copy_from_slice(&link[12..18]);
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    Some(Datagram {
        at,
        hardware: Hardware(hardware),
        from: SocketAddrV4::new(address(12), port(0)),
        to: SocketAddrV4::new(address(16), port(2)),
        length: usize::from(port(4)).saturating_sub(8),
        payload: udp[8..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One UDP datagram as tcpdump writes it.
    pub(crate) fn file(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 400, 276] {
            bytes.extend(number.to_le_bytes());
        }
        let mut packet = vec![
            0x08, 0, 0, 0, 0, 0, 0, 7, 0, 1, 4, 6, 2, 0, 0, 0, 0, 9, 0, 0,
        ];
        packet.extend([
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 79, 0, 1, 10, 79, 0, 101,
        ]);
        packet.extend(7882_u16.to_be_bytes());
        packet.extend(50_000_u16.to_be_bytes());
        packet.extend((payload.len() as u16 + 8).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        for number in [
            1_700_000_000,
            250_000,
            packet.len() as u32,
            packet.len() as u32,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(packet);
        bytes
    }

    #[test]
    fn a_datagram_is_read_with_its_ends() -> Result<()> {
        let bytes = file(&[1, 2, 3]);
        let mut reader = Reader::new(&bytes[..])?;
        let datagram = reader.next()?.context("one datagram")?;
        assert_eq!(datagram.from.to_string(), "10.79.0.1:7882");
        assert_eq!(datagram.to.to_string(), "10.79.0.101:50000");
        assert_eq!(
            (datagram.length, &datagram.payload[..]),
            (3, &[1, 2, 3][..])
        );
        assert_eq!(datagram.hardware, Hardware([2, 0, 0, 0, 0, 9]));
        assert!((datagram.at - 1_700_000_000.25).abs() < 1e-3);
        assert!(reader.next()?.is_none());
        Ok(())
    }

    #[test]
    fn a_file_that_ends_within_a_record_ends_there() -> Result<()> {
        let bytes = file(&[1, 2, 3]);
        for length in 24..bytes.len() {
            assert!(Reader::new(&bytes[..length])?.next()?.is_none());
        }
        assert!(Reader::new(&b"no capture at all, really"[..]).is_err());
        Ok(())
    }
}
