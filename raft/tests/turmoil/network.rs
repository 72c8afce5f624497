//! The cluster port over the simulated network: how nodes call each other, and take calls.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_raft::{Connection, Dialer};
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use turmoil::net::{TcpListener, TcpStream};

/// Every node's cluster port.
const PORT: u16 = 7000;

/// A node's host name.
pub(crate) fn host(node: u64) -> String {
    format!("n{node}")
}

/// Where a node's cluster port is.
pub(crate) fn address(node: u64) -> String {
    format!("{}:{PORT}", host(node))
}

/// Opens connections over the simulated network.
pub(crate) fn dialer() -> Dialer {
    Arc::new(|address: String| {
        Box::pin(async move {
            let connection = TcpStream::connect(address).await?;
            Ok(Box::pin(connection) as Connection)
        })
    })
}

/// The connections that arrive at this node's cluster port.
pub(crate) async fn incoming() -> io::Result<BoxStream<'static, io::Result<Connection>>> {
    let any = SocketAddr::from(([0, 0, 0, 0], PORT));
    let listener = TcpListener::bind(any).await?;
    let taken = unfold(listener, |listener| async {
        let taken = listener.accept().await;
        let connection = taken.map(|(stream, _)| Box::pin(stream) as Connection);
        Some((connection, listener))
    });
    Ok(taken.boxed())
}
