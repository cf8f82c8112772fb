"""Next.js: pages and routes in a standalone build, with a user of its own, rows in PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.app.frameworks import Framework, image

# The certificates that this machine trusts: a proxy between it and the packages may have its own.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

NEXTJS = Framework(
    files={
        # Corepack fetches npm, as the project names it.
        "Dockerfile": image("ca-certificates", "nodejs", more=(
            "WORKDIR /app\n"
            "FROM base AS build\nENV NODE_EXTRA_CA_CERTS=/app/authorities.crt\n"
            "COPY package.json authorities.crt ./\nRUN corepack npm install\n"
            "COPY . .\nRUN corepack npm run build\n"
            "FROM base\nRUN useradd --create-home web\n"
            "COPY --from=build --chown=web /app/.next/standalone ./\n"
            "COPY --from=build --chown=web /app/.next/static ./.next/static\n"
            "COPY VERSION migrate.js ./\nUSER web\nEXPOSE 3000\n"
            'CMD ["node", "server.js"]\n'
        )).replace("debian:trixie", "debian:trixie AS base"),
        ".dockerignore": ".next\nnode_modules\n",
        "package.json": """{
  "private": true,
  "packageManager": "npm@10.9.2",
  "scripts": {"build": "next build"},
  "dependencies": {"next": "16.4.6", "pg": "8.23.1", "react": "19.3.1", "react-dom": "19.3.1"}
}
""",
        "next.config.js": "module.exports = { output: 'standalone' }\n",
        "migrate.js": """
const { Client } = require('pg')
const client = new Client({ connectionString: process.env.DATABASE_URL })
const create = 'CREATE TABLE IF NOT EXISTS rows (text text)'
client.connect().then(() => client.query(create)).then(() => client.end())
""",
        "app/layout.js": """
export default function Layout({ children }) {
  return <html lang="en"><body>{children}</body></html>
}
""",
        "app/page.js": """
import { readFileSync } from 'fs'
export const dynamic = 'force-dynamic'
export default function Page() {
  return <main>{readFileSync('VERSION', 'utf8')}</main>
}
""",
        "app/api/health/route.js": "export const GET = () => new Response('up')\n",
        "app/rows/route.js": """
import { Pool } from 'pg'
const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 2 })
export const dynamic = 'force-dynamic'
export async function GET() {
  const found = await pool.query('SELECT text FROM rows ORDER BY 1')
  return Response.json(found.rows.map(row => row.text))
}
export async function POST(request) {
  await pool.query('INSERT INTO rows VALUES ($1)', [await request.text()])
  return GET()
}
""",
    },
    data={
        "database": "its own", "secrets_env": True, "migrate": ["node", "migrate.js"],
        # These two are what commands/check.py proposes.
        "health_path": "/api/health", "env": {"HOSTNAME": "0.0.0.0"},
    },
)  # fmt: skip


def trust_authorities(source: Path) -> None:
    """Let the build on the server trust whom this machine trusts for packages."""
    text = AUTHORITIES.read_text() if AUTHORITIES.exists() else ""
    (source / "authorities.crt").write_text(text)
