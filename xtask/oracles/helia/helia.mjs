// Helia as a client: bitswap alone, with one peer that is named.
//
//   helia get MULTIADDR DIR block:CID file:CID …
//                              one after the other: the bytes of a block into DIR/CID.block, of a
//                              UnixFS file into DIR/CID.file
//   helia walk MULTIADDR CID   the whole DAG; prints its blocks, their bytes, seconds it took
//
// Out      a bad end is a word on standard error and exit code 1.
// Limits   HELIA_TIMEOUT seconds in all, 60 unless told. Nothing listens, nobody else is asked.

import { createWriteStream } from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { quic } from '@chainsafe/libp2p-quic'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { exporter } from 'ipfs-unixfs-exporter'
import { CID } from 'multiformats/cid'
import * as dagPb from '@ipld/dag-pb'

// Blocks of a DAG that are asked for at a time.
const WINDOW = 64

async function start () {
  const helia = withBitswap(withLibp2pLight(createHeliaLight(), {
    addresses: { listen: [] },
    transports: [tcp(), webSockets(), quic()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify() },
    connectionMonitor: { enabled: false }
  }))
  await helia.start()
  return helia
}

async function bytesOf (helia, cid, signal) {
  const parts = []
  for await (const part of helia.blockstore.get(cid, { signal })) {
    parts.push(part)
  }
  return Buffer.concat(parts)
}

const kinds = {
  async * block (helia, cid, signal) {
    yield await bytesOf(helia, cid, signal)
  },

  async * file (helia, cid, signal) {
    const file = await exporter(cid, helia.blockstore, { signal })
    yield * file.content({ signal })
  }
}

const commands = {
  async get (helia, signal, [dir, ...items]) {
    for (const item of items) {
      const [kind, cid] = item.split(':')
      const parts = kinds[kind](helia, CID.parse(cid), signal)
      await pipeline(Readable.from(parts), createWriteStream(`${dir}/${cid}.${kind}`))
    }
  },

  async walk (helia, signal, [root]) {
    const cid = CID.parse(root)
    const start = performance.now()
    const seen = new Set([cid.toString()])
    const open = [cid]
    let bytes = 0
    const fetchOne = async () => {
      const next = open.pop()
      const block = await bytesOf(helia, next, signal)
      bytes += block.length
      const links = next.code === dagPb.code ? dagPb.decode(block).Links : []
      for (const { Hash: link } of links) {
        if (!seen.has(link.toString())) {
          seen.add(link.toString())
          open.push(link)
        }
      }
    }
    const running = new Set()
    while (open.length > 0 || running.size > 0) {
      while (open.length > 0 && running.size < WINDOW) {
        const one = fetchOne().finally(() => running.delete(one))
        running.add(one)
      }
      await Promise.race(running)
    }
    const seconds = (performance.now() - start) / 1000
    console.log(`${seen.size} ${bytes} ${seconds.toFixed(3)}`)
  }
}

const [name, address, ...rest] = process.argv.slice(2)
const command = commands[name]
if (command == null || rest.length === 0) {
  console.error('usage: helia get MULTIADDR DIR block:CID file:CID …\n       helia walk MULTIADDR CID')
  process.exit(2)
}
const seconds = Number(process.env.HELIA_TIMEOUT ?? 60)
const signal = AbortSignal.timeout(seconds * 1000)
try {
  const helia = await start()
  await helia.libp2p.dial(multiaddr(address), { signal })
  await command(helia, signal, rest)
  process.exit(0) // Stopping takes longer than all else.
} catch (error) {
  console.error(error)
  process.exit(1)
}
