//! What stands in front of nodes in a deployment: a load balancer. Each node has a port here that leads
//! to it, and while it is away or takes nobody, to the next one that does. So a page that chose a node
//! resumes at another one when its own is killed.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long a node may take to say that it is well.
const CHECK_MAX: Duration = Duration::from_millis(300);
/// Connections through one port at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1_000;
/// How long a port that cannot accept (the process has no descriptors left) is left alone.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves all ports; `nodes[i]` is the port of the node that `fronts[i]` leads to. Does not return.
pub(super) async fn serve(fronts: Vec<TcpListener>, nodes: Vec<u16>) {
    let mut tasks = JoinSet::new();
    for (index, front) in fronts.into_iter().enumerate() {
        let mut order = nodes.clone();
        order.rotate_left(index);
        tasks.spawn(serve_one(front, order));
    }
    while tasks.join_next().await.is_some() {}
}

async fn serve_one(front: TcpListener, order: Vec<u16>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        match front.accept().await {
            Ok((client, _)) => {
                connections.spawn(splice(client, order.clone()));
            }
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}

/// Joins a client to the first node that takes people. Either end's end ends both.
async fn splice(mut client: TcpStream, order: Vec<u16>) {
    for port in order {
        if !is_up(port).await {
            continue;
        }
        if let Ok(mut node) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            // It is about latency: a message that waits for the next one is late.
            let _ = client.set_nodelay(true);
            let _ = node.set_nodelay(true);
            let _ = copy_bidirectional(&mut client, &mut node).await;
            return;
        }
    }
}

/// Health as a load balancer asks for it.
pub(super) async fn is_up(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer.ends_with(b" 200"))
    };
    matches!(tokio::time::timeout(CHECK_MAX, ask).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers health checks with `status`, everything else with its name.
    async fn node(name: &'static str, status: &'static str) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it listens").port();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 5];
                if stream.read_exact(&mut asked).await.is_ok() {
                    let is_check = &asked == b"GET /";
                    let answer = if is_check { status } else { name };
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        (port, task)
    }

    async fn ask(port: u16) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .expect("the front listens");
        stream.write_all(b"hello").await.expect("sent");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn leads_to_its_node_and_past_one_that_takes_nobody_or_is_gone() {
        let (one, first) = node("one", "HTTP/1.0 200 OK").await;
        let (two, _second) = node("two", "HTTP/1.0 406 No").await;
        let (three, _third) = node("three", "HTTP/1.0 200 OK").await;
        let mut fronts = Vec::new();
        for _ in 0..3 {
            fronts.push(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
        }
        let ports: Vec<u16> = fronts
            .iter()
            .map(|front| front.local_addr().expect("it listens").port())
            .collect();
        let serving = tokio::spawn(serve(fronts, vec![one, two, three]));
        assert_eq!(ask(ports[0]).await, "one");
        assert_eq!(ask(ports[1]).await, "three");
        assert_eq!(ask(ports[2]).await, "three");
        first.abort();
        let _ = first.await;
        assert_eq!(ask(ports[0]).await, "three");
        serving.abort();
    }
}
