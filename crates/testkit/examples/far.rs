fn main() {
    let up: std::net::SocketAddr = std::env::args().nth(1).unwrap().parse().unwrap();
    let proxy = carrack_testkit::Proxy::start(up).unwrap();
    proxy.set(carrack_testkit::Conduct::far());
    println!("{}", proxy.url());
    let mut last = 0;
    for _ in 0..600 {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let c = proxy.counts();
        if c.body_bytes != last {
            println!("{:?}", c);
            last = c.body_bytes;
        }
    }
}
